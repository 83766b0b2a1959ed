"""An ingested data set: manifest, shards, and the way from stored bytes to pixels."""
