"""Ray: joining it, sharing work out, retrying what it lost."""
