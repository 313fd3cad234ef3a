"""Images on disk to batches: sources, splits, augmentation, decoding, and the data module."""
