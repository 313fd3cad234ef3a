"""Embedding a table of images into a file, from the feature cache if it has them all."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import raise_broken
from transferkit.embed import feature_cache
from transferkit.embed.embedding_space import EmbeddingSpace, describe
from transferkit.embed.features import recall, with_origin
from transferkit.embed.shards import SKIP, Shards, Written, check_question, discard_parts, fill, find_written, plan
from transferkit.embed.stream import make_table, stream_table, usual_batch_size
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.runtime.ranks import joined

log = logging.getLogger(__name__)


def embed_to_file(
    extractor: Extractor,
    table: ImageTable,
    out: Path,
    forward: Forward,
    batch_size: int | None = None,
    on_error: str = "fail",
    as_folder: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> Written:
    """Embed a table into Parquet, and share pooled embeddings in the usual batches with the feature cache.

    If the cache has every image, the file is written from it. Otherwise all images are embedded, so that the file does
    not depend on earlier commands, and the cache keeps a copy. If there are several processes, all call this.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        out: the Parquet file.
        forward: what is kept of each image.
        batch_size: images per forward pass; see :func:`~transferkit.embed.stream.usual_batch_size`.
        on_error: ``fail`` names the first unreadable images and writes no file, ``skip`` leaves them out.
        as_folder: ``out`` becomes a directory of shards.
        workers: threads; by default one per core.
        overwrite: replace embeddings of another extractor or of other images.

    Raises:
        UserError: ``out`` cannot be written or holds something else; images cannot be read.
    """
    shares = forward.features == "pooled" and batch_size is None and not as_folder
    with joined() as ranks:
        stamps = table.stamps() if ranks.rank == 0 else []
        metadata = ranks.from_first(lambda: describe(extractor, table, forward=forward, stamps=stamps))
        shards = plan(out, table, metadata, batch_size or usual_batch_size(extractor.device), as_folder)

        def without_embedding() -> Written | None:
            found = find_written(shards, on_error)
            if found is None and not overwrite:
                check_question(shards)
            return from_cache(shards, stamps, on_error) if found is None and shares else found

        if (done := ranks.from_first(without_embedding)) is not None:
            return done
        done = fill(shards, partial(stream_table, extractor, table, forward=forward, workers=workers), on_error, ranks)
        if shares and done.embedded and ranks.rank == 0:
            keep_copy(out, table, stamps, EmbeddingSpace.from_metadata(metadata))
    return done


def from_cache(shards: Shards, stamps: Sequence[str], on_error: str) -> Written | None:
    """Write a file from the feature cache; return ``None`` if it lacks an image.

    Raises:
        UserError: images cannot be read, with ``fail``; the place cannot be written.
    """
    table, metadata = shards.table, shards.metadata
    folder = feature_cache.entries_folder(EmbeddingSpace.from_metadata(metadata))
    known, values = recall(folder, table.paths, stamps, metadata["embed_dim"])
    if known.missing or not known.places:
        return None
    if on_error == "fail":
        raise_broken(dict(known.broken), table.source, SKIP, len(table))
    row_of = {path: row for row, path in enumerate(known.places)}
    rows = [row for row, path in enumerate(table.paths) if path in row_of]
    values = values[[row_of[table.paths[row]] for row in rows]]
    make_table(table, rows, values, with_origin(metadata, known.broken, known.foreign)).write(shards.out)
    discard_parts(shards.out)
    return Written(len(rows), dict(known.broken), 0)


def keep_copy(out: Path, table: ImageTable, stamps: Sequence[str], space: EmbeddingSpace) -> None:
    """Keep a copy in the feature cache; a failure is only a warning."""
    try:
        feature_cache.deposit(out, table, stamps, space)
    except (UserError, OSError) as error:
        log.warning("the feature cache keeps no copy, later commands will embed these images again: %s", error)
