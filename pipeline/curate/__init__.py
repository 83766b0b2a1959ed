"""The curate stage: near-duplicates, leaks, and a selection that is balanced without labels."""
