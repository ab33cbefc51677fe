"""Image-text pairs: from shards on disk to batches."""
