"""Embedding a table of images in memory."""

from contextlib import closing
from pathlib import Path

import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.integrity import raise_broken
from transferkit.embed.embedding_space import describe
from transferkit.embed.stream import batch_ranges, make_table, stream_table, usual_batch_size
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward


def embed(
    images: str | Path | ImageTable,
    extractor: Extractor,
    batch_size: int | None = None,
    on_error: str = "fail",
    forward: Forward | None = None,
) -> Embeddings:
    """Embed a folder, manifest or image file into a table in memory.

    Args:
        images: anything that :func:`~transferkit.data.image_table.open_images` opens, or its table.
        extractor: the extractor, on the device to use.
        batch_size: images per forward pass; by default :func:`~transferkit.embed.stream.usual_batch_size`.
        on_error: ``fail`` names every unreadable image after the pass, ``skip`` leaves them out.
        forward: what is kept of each image; by default the extractor's embedding in float32.

    Returns:
        Embeddings float32 (N, D) with paths, labels, splits and metadata, in path order.

    Raises:
        UserError: there are no images, none can be read, or some cannot with ``fail``.
    """
    table = images if isinstance(images, ImageTable) else open_images(images)
    forward = forward or extractor.forward()
    batch_size = batch_size or usual_batch_size(extractor.device)
    broken: dict[str, str] = {}
    rows: list[int] = []
    parts = []
    with closing(stream_table(extractor, table, batch_ranges(len(table), batch_size), forward)) as batches:
        for batch in batches:
            rows += batch.rows
            parts.append(batch.embedding)
            broken |= {table.paths[row]: str(fault) for row, fault in batch.broken.items()}
    if broken and on_error == "fail":
        raise_broken(broken, table.source, 'leave them out with `on_error="skip"`')
    if not rows:
        raise UserError(f"none of the {len(table)} images can be read; scan {table.source} to see why")
    metadata = describe(extractor, table, forward=forward) | {"batch_size": batch_size, "broken": broken}
    return make_table(table, rows, torch.cat([part for part in parts if len(part)]), metadata)
