"""Embedding whole tables of images: streamed, sharded, resumable."""

from transferkit.embed.embedding_space import describe, space_of
from transferkit.embed.features import cached_features, feature_key, fill_features, forget_features, knows_some
from transferkit.embed.in_memory import embed
from transferkit.embed.shards import write_embeddings
from transferkit.embed.to_file import embed_to_file

__all__ = [
    "cached_features",
    "describe",
    "embed",
    "embed_to_file",
    "feature_key",
    "fill_features",
    "forget_features",
    "knows_some",
    "space_of",
    "write_embeddings",
]
