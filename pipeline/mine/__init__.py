"""The mine stage: which images of a data set are rare, scored without labels."""
