"""Image sources: where the images are, and which set each belongs to."""
