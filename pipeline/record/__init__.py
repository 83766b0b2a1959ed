"""What a run leaves: run.json, metrics.jsonl, scores, gauges, and their schema."""
