"""Record of a run: run.json, metrics.jsonl, scores, gauges, and their schema."""
