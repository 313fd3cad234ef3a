"""Embedding a table in memory."""

from pathlib import Path

import torch

from transferkit.data.image_table import ImageTable
from transferkit.embed import embed
from transferkit.embed.stream import batch_ranges
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
