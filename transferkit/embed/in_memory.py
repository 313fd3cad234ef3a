"""Embedding a table of images in memory."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import raise_broken
from transferkit.data.memory_table import table_of_images
from transferkit.embed.embedding_space import describe
from transferkit.embed.stream import batch_ranges, make_table, stream_table, usual_batch_size
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.runtime.verbosity import progress_wanted, showing_progress


def embed(
    images: str | Path | ImageTable | Iterable[Any],
    extractor: Extractor,
    batch_size: int | None = None,
    on_error: str = "fail",
    forward: Forward | None = None,
    progress: bool = False,
) -> Embeddings:
    """Embed a folder, manifest or image file, or images that Python holds, into a table in memory.

    Args:
        images: anything that :func:`~transferkit.data.image_table.open_images` opens, or its table; or a list, iterator
            or dataset as for ``Extractor.embed``, whose labels are kept.
        extractor: the extractor, on the device to use.
        batch_size: images per forward pass; by default :func:`~transferkit.embed.stream.usual_batch_size`.
        on_error: ``fail`` names the first unreadable images after the pass, ``skip`` leaves them out.
        forward: what is kept of each image; by default the extractor's embedding in float32.
        progress: show a progress bar on a terminal or in a notebook.

    Returns:
        Embeddings float32 (N, D) with paths, labels, splits and metadata, in path order.

    Raises:
        UserError: there are no images, none can be read, or some cannot with ``fail``.
    """
    table = images if isinstance(images, ImageTable) else table_of_images(images)
    forward = forward or extractor.forward()
    batch_size = batch_size or usual_batch_size(extractor.device)
    broken: dict[str, str] = {}
    rows: list[int] = []
    parts = []
    ranges = batch_ranges(len(table), batch_size)
    with (
        showing_progress(progress or progress_wanted.get()),
        closing(stream_table(extractor, table, ranges, forward)) as batches,
    ):
        for batch in batches:
            rows += batch.rows
            parts.append(batch.embedding)
            broken |= {table.paths[row]: str(fault) for row, fault in batch.broken.items()}
    if broken and on_error == "fail":
        raise_broken(broken, table.source, 'leave them out with `on_error="skip"`', len(table))
    if not rows:
        raise UserError(f"none of the {len(table)} images can be read; scan {table.source} to see why")
    metadata = describe(extractor, table, forward=forward) | {"batch_size": batch_size, "broken": broken}
    return make_table(table, rows, torch.cat([part for part in parts if len(part)]), metadata)
