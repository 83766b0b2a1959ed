"""Ratios of two things measured in the same run; see `benchmarks.table`."""
