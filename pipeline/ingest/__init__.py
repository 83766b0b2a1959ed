"""The ingest stage: any image source becomes verified shards and a manifest."""
