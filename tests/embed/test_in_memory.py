"""Embedding a table in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transferkit.data.image_table import ImageTable
from transferkit.embed import embed
from transferkit.embed.features import cached_features
from transferkit.embed.regions import Box, embed_regions
from transferkit.embed.stream import batch_ranges
from transferkit.errors import UserError
from transferkit.extractor import Extractor


def test_an_embedding_does_not_depend_on_threads_or_broken_neighbours(table: ImageTable, extractor: Extractor) -> None:
    whole = embed(table, extractor, batch_size=8)
    assert torch.equal(embed(table, extractor, batch_size=8).embedding, whole.embedding)
    pixels = [extractor.preprocessing.resize_crop(table.read(row)) for row in range(41)]
    alone = torch.cat([extractor(torch.stack([pixels[row] for row in rows])) for rows in batch_ranges(41, 8)])
    torch.testing.assert_close(whole.embedding, alone, atol=1e-5, rtol=0)
    row = 10
    Path(table.root, table.paths[row]).write_bytes(b"no picture")
    rest = embed(table, extractor, batch_size=8, on_error="skip")
    kept = [other for other in range(41) if other != row]
    assert torch.equal(rest.embedding, whole.embedding[kept]) and list(rest.metadata["broken"]) == [table.paths[row]]


@pytest.mark.parametrize("way", ["memory", "cache", "crop", "roi_align"])
def test_embeddings_that_overflow_are_refused(way: str, table: ImageTable, extractor: Extractor, cache: Path) -> None:
    """Every weight is finite, as is a row's sum; a table of infinities would be found by a later command only."""
    with torch.no_grad():
        extractor.backbone.model.layernorm.weight.fill_(3e38)
    first = Box(1, table.paths[0], 0, 0, 20, 20)
    ways: dict[str, Callable[[], object]] = {
        "memory": lambda: embed(table, extractor),
        "cache": lambda: cached_features(extractor, table),
        "crop": lambda: embed_regions(extractor, table, [first]),
        "roi_align": lambda: embed_regions(extractor, table, [first], "roi_align"),
    }
    with pytest.raises(UserError, match=r"^the embedding of 'apples/000.png' holds NaN or infinity; check the extract"):
        ways[way]()
    assert not list(cache.rglob("*.parquet"))


def test_large_embeddings_are_no_infinite_ones(table: ImageTable, extractor: Extractor) -> None:
    with torch.no_grad():
        extractor.backbone.model.layernorm.weight.fill_(0)
        extractor.backbone.model.layernorm.bias.fill_(3e38)  # whose sum overflows
    assert embed(table, extractor).embedding.min() > 2e38
