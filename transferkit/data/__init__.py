"""Images on disk to batches: sources, splits, scanning, augmentation, decoding, and the data module."""
