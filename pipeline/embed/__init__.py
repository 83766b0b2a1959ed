"""Vectors of a data set's images: made by frozen networks, kept as Parquet files, read again."""
