"""The curate stage: near-duplicates, and a selection that is balanced without labels."""
