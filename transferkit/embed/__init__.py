"""Embedding whole tables of images: streamed, sharded, resumable."""

from transferkit.embed.features import cached_features, feature_key, fill_features
from transferkit.embed.shards import write_embeddings
from transferkit.embed.table import describe, embed

__all__ = ["cached_features", "describe", "embed", "feature_key", "fill_features", "write_embeddings"]
