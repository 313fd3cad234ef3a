"""A table of images to a file of embeddings, from the cache where that knows them all."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import raise_broken
from transferkit.embed import feature_cache
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.embed.features import complete, recall
from transferkit.embed.in_memory import describe, make_table
from transferkit.embed.shards import SKIP, Written, check_place, discard_parts, write_embeddings, written_before
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
) -> Written:
    """Embed a table into Parquet; one embedding per image and the usual batches are shared with the feature cache.

    Where the cache knows every image the file is written from it, else all are embedded (the file then does not
    depend on what other commands have done) and a copy is kept. Arguments as of
    :func:`~transferkit.embed.shards.write_embeddings`; where there are several processes, all call this.

    Raises:
        UserError: see there.
    """
    shares = forward.features == "pooled" and batch_size is None and not as_folder
    with joined() as ranks:
        stamps = table.stamps() if ranks.rank == 0 else []
        metadata = ranks.from_first(lambda: describe(extractor, table, forward=forward, stamps=stamps))
        space = EmbeddingSpace.from_metadata(metadata)
        done = None
        if shares:
            done = ranks.from_first(lambda: from_cache(extractor, table, out, metadata, stamps, on_error))
        if done is not None:
            return done
        done = write_embeddings(
            extractor,
            table,
            out,
            metadata,
            forward,
            batch_size,
            on_error,
            as_folder,
            workers=workers,
            rank=ranks.rank,
            world_size=ranks.world_size,
            agree=ranks.all_true,
        )
        if shares and done.embedded and ranks.rank == 0:
            keep_copy(out, table, stamps, space)
    return done


def from_cache(
    extractor: Extractor, table: ImageTable, out: Path, metadata: dict[str, Any], stamps: Sequence[str], on_error: str
) -> Written | None:
    """Write a file from the feature cache; ``None`` if that lacks an image, or the file is there already.

    Raises:
        UserError: unreadable images with ``fail``; the place cannot be written, or holds something else.
    """
    check_place(out, as_folder=False)
    width, folder = metadata["embed_dim"], feature_cache.entries_folder(EmbeddingSpace.from_metadata(metadata))
    if written_before(out, table, complete(metadata, extractor, {}, 0)):
        return None
    known, values = recall(folder, table.paths, stamps, width)
    if known.missing or not known.places:
        return None
    if on_error == "fail":
        raise_broken(dict(known.broken), table.source, SKIP)
    row_of = {path: row for row, path in enumerate(known.places)}
    rows = [row for row, path in enumerate(table.paths) if path in row_of]
    values = values[[row_of[table.paths[row]] for row in rows]]
    make_table(table, rows, values, complete(metadata, extractor, dict(known.broken), known.foreign)).save(out)
    discard_parts(out)
    return Written(len(rows), dict(known.broken), 0)


def keep_copy(out: Path, table: ImageTable, stamps: Sequence[str], space: EmbeddingSpace) -> None:
    """Let later commands find what was written; that they cannot is no reason to fail."""
    try:
        feature_cache.deposit(out, table, stamps, space)
    except (UserError, OSError) as error:
        log.warning("later commands will embed these images again: %s", error)
