"""Embedding whole tables of images: streamed, sharded, resumable."""

from transferkit.embed.features import cached_features, feature_key, fill_features
from transferkit.embed.table import describe, embed, write_embeddings

__all__ = ["cached_features", "describe", "embed", "feature_key", "fill_features", "write_embeddings"]
