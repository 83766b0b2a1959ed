"""Everything about one GPU in one call of under 9 minutes: `python -m benchmarks.gpu`."""
