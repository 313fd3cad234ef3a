"""Image search: an index of embeddings on disk, queries against it, and near-duplicates."""
