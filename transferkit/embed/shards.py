"""Embedding a table of images into Parquet, resumably: shards are written first and joined at the end."""

import glob
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from transferkit.data.asked import asked_of, check_same
from transferkit.data.columns import GROUP, TEXTS, take
from transferkit.data.embeddings import Embeddings, read_facts, with_metadata, writer
from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import raise_broken
from transferkit.data.label_columns import NUMBER
from transferkit.embed.stream import Batch, View, batch_ranges, make_table, stream_table, usual_batch_size
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.runtime.files import (
    TEMPORARY,
    atomic_path,
    check_parquet,
    check_place,
    discard,
    install,
    sweep,
    through_links,
    unwritable,
)
from transferkit.runtime.ranks import Ranks

SHARD_BATCHES = 16  # a killed run repeats at most this many batches
SHARD_BYTES = 2**26  # fewer batches per shard if an image gives many numbers
SHARD_NAME = re.compile(rf"\d{{6,}}\.parquet|{TEMPORARY.pattern}")  # or left by a killed run
IGNORED = {"broken": {}, "reused": 0}  # metadata that may differ when an existing file is compared
CHOSEN = ("layer", "features", "normalize", "precision", "engine")  # metadata that a message names
SKIP = 'leave them out with `on_error="skip"`, which keeps what is done'


class Written(NamedTuple):
    """Result of writing embeddings: rows, reasons for the images left out, and how many were embedded now."""

    images: int
    broken: dict[str, str]
    embedded: int


@dataclass(frozen=True)
class Shards:
    """The parts of a file of embeddings, in a folder beside it until it is complete.

    Attributes:
        out: the final file, or directory of shards.
        as_folder: whether it is a directory.
        table: the images.
        metadata: of the embeddings.
        folder: named by all that the content depends on, so that a stale shard is never used.
        batches: row ranges of each batch of each shard.
    """

    out: Path
    as_folder: bool
    table: ImageTable
    metadata: Mapping[str, Any]
    folder: Path
    batches: list[list[range]]

    @property
    def files(self) -> list[Path]:
        """The file of each shard, in row order."""
        return [self.folder / f"{number:06d}.parquet" for number in range(len(self.batches))]

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not written yet."""
        return [number for number, file in enumerate(self.files) if not file.is_file()]

    def rows(self, number: int) -> int:
        """Count the rows of a shard, including unreadable ones."""
        return sum(map(len, self.batches[number]))


def write_embeddings(
    extractor: Extractor,
    table: ImageTable,
    out: Path,
    metadata: Mapping[str, Any],
    forward: Forward | None = None,
    batch_size: int | None = None,
    on_error: str = "record",
    as_folder: bool = False,
    view: View | None = None,
    workers: int | None = None,
    ranks: Ranks | None = None,
) -> Written:
    """Embed a table into Parquet, rows in path order; if run again, it does only what is missing.

    Batches are cut from the sorted paths at fixed places and shards from the batches, and each process takes whole
    shards, so neither an interruption nor the number of processes changes a bit of the result. Unreadable images are
    left out and named in the metadata under ``broken``.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        out: the Parquet file.
        metadata: what :func:`~transferkit.embed.describe` returns for them.
        forward: what is kept of each image; by default the extractor's embedding in float32.
        batch_size: images per forward pass; see :func:`~transferkit.embed.stream.usual_batch_size`.
        on_error: ``fail`` names the first unreadable images and writes no file, but keeps the shards; ``skip`` does so
            only if none can be read, ``record`` never.
        as_folder: ``out`` becomes a directory of shards.
        view: a random view of the images instead of their preprocessing.
        workers: threads; by default one per core.
        ranks: the processes that call this together and share the file system; by default this one alone.

    Raises:
        UserError: ``out`` cannot be written or holds something else; images cannot be read.
    """
    ranks = ranks or Ranks()
    shards = plan(out, table, metadata, batch_size or usual_batch_size(extractor.device), as_folder)
    if found := ranks.from_first(lambda: find_written(shards, on_error)):
        return found
    stream = partial(stream_table, extractor, table, forward=forward, view=view, workers=workers)
    return fill(shards, stream, on_error, ranks)


def plan(out: Path, table: ImageTable, metadata: Mapping[str, Any], batch_size: int, as_folder: bool = False) -> Shards:
    """Cut a table into shards of whole batches, the same for any number of processes."""
    metadata = {**metadata, "batch_size": batch_size}
    size = max(1, min(SHARD_BATCHES, SHARD_BYTES // (4 * metadata["embed_dim"] * batch_size)))
    batches = batch_ranges(len(table), batch_size)
    content = [metadata, table.labels, table.splits, size, *([] if table.groups is None else [table.groups])]
    key = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    out = through_links(out)  # shards are written on the same disk as the result
    folder = out.with_name(f".{out.name}.{key[:16]}.parts")
    whole = [batches[i : i + size] for i in range(0, len(batches), size)]
    return Shards(out, as_folder, table, metadata, folder, whole)


def find_written(shards: Shards, on_error: str) -> Written | None:
    """Return what an earlier run has written to the same place, if it is what this one would write.

    Raises:
        UserError: the place holds something else; images cannot be read, with ``fail``.
    """
    check_embeddings(shards.out, shards.as_folder)
    sweep(shards.out.absolute().parent)
    found = written_before(shards)
    if found:
        discard_parts(shards.out)
        if on_error == "fail":
            raise_broken(found.broken, shards.table.source, SKIP, len(shards.table))
    return found


def fill(shards: Shards, stream: Callable[..., Generator[Batch, None, None]], on_error: str, ranks: Ranks) -> Written:
    """Embed the shards that are missing, a share of them in each process, and join all of them.

    Args:
        shards: what to write.
        stream: embeds batches of rows: :func:`~transferkit.embed.stream.stream_table` of the shards' table.
        on_error: see :func:`write_embeddings`.
        ranks: the processes that call this together.

    Raises:
        UserError: see :func:`write_embeddings`.
    """
    missing = shards.missing()
    mine = [number for number in missing if number % ranks.world_size == ranks.rank]

    def work() -> None:
        make_folder(shards)
        batches = [rows for number in mine for rows in shards.batches[number]]
        with closing(stream(batches, show=ranks.rank == 0)) as results:
            for number in mine:
                try:
                    shard_of(shards, [next(results) for _ in shards.batches[number]]).save(shards.files[number])
                except UserError:  # another command has written the same and removed the shards
                    if written_before(shards) is None:
                        raise
                    return

    ranks.run_on_all(work)
    images, broken = ranks.from_first(lambda: finish(shards, on_error))
    return Written(images, broken, sum(map(shards.rows, missing)))


def shard_of(shards: Shards, batches: Sequence[Batch]) -> Embeddings:
    """Make the table of one shard from its batches."""
    rows = [row for batch in batches for row in batch.rows]
    values = [batch.embedding for batch in batches if batch.rows] or [torch.empty(0, shards.metadata["embed_dim"])]
    broken = {shards.table.paths[row]: str(fault) for batch in batches for row, fault in batch.broken.items()}
    return make_table(shards.table, rows, torch.cat(values), {**shards.metadata, "broken": broken})


def finish(shards: Shards, on_error: str) -> tuple[int, dict[str, str]]:
    """Join the shards; return the number of rows, and the reasons of the images that are left out.

    Another command that writes the same at the same time may have finished first and removed the shards.

    Raises:
        UserError: see :func:`assemble`.
    """
    try:
        return assemble(shards, on_error)
    except (UserError, FileNotFoundError):
        found = written_before(shards)
        if found is None or (found.broken and on_error == "fail"):
            raise
        discard_parts(shards.out)
        return found.images, found.broken


def assemble(shards: Shards, on_error: str) -> tuple[int, dict[str, str]]:
    """Check that the shards hold every row exactly once, and join them; returns as :func:`finish` does.

    Raises:
        UserError: a row is missing or present twice; images cannot be read; the place cannot be written.
    """
    table = shards.table
    paths: list[str] = []
    broken: dict[str, str] = {}
    for file in shards.files:
        facts = read_facts(file)
        paths += facts.paths
        broken |= facts.metadata["broken"]
    if sorted([*paths, *broken]) != list(table.paths) or paths != sorted(paths):
        raise UserError(f"{shards.folder} does not hold every row exactly once; delete it and start again")
    if on_error == "fail":
        raise_broken(broken, table.source, SKIP, len(table))
    if not paths and on_error == "skip":
        raise UserError(f"none of the {len(table)} images can be read; scan {table.source} to see why")
    if shards.as_folder:
        try:
            install(shards.folder, shards.out)
        except OSError as error:
            raise unwritable(shards.out, error) from error
    else:
        with atomic_path(shards.out) as temporary:
            join(shards.files, temporary, {**shards.metadata, "broken": broken})
    discard_parts(shards.out)
    return len(paths), broken


def discard_parts(out: Path) -> None:
    """Remove all shards of a complete file, including those of earlier runs with other content."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.parts"):
        discard(folder)


def join(files: list[Path], out: Path, metadata: Mapping[str, Any]) -> None:
    """Join shards in order into one file, with one in memory at a time."""
    with writer(out, with_metadata(pq.read_schema(files[0]), metadata)) as parquet:
        for file in files:
            parquet.write_table(pq.read_table(file).replace_schema_metadata(parquet.schema.metadata))


def written_before(shards: Shards) -> Written | None:
    """Return what the place holds, if it is what these shards make."""
    try:
        facts = read_facts(shards.out)
    except UserError:
        return None
    broken, table = facts.metadata.get("broken", {}), shards.table
    same = {**facts.metadata, **IGNORED} == {**shards.metadata, **IGNORED}
    wanted = take(table, (row for row, path in enumerate(table.paths) if path not in broken))
    if not same or wanted != (facts.paths, facts.labels, facts.splits, facts.groups):
        return None
    return Written(len(wanted.paths), broken, 0)


def check_question(shards: Shards) -> None:
    """Refuse to replace embeddings of another extractor, of other images, or of other labels.

    Those of other versions of libraries are written again.

    Raises:
        UserError: the place holds such embeddings.
    """
    try:
        facts = read_facts(shards.out)
    except UserError:  # nothing, or an empty folder
        return
    broken, table = facts.metadata.get("broken", {}), shards.table
    kept = table.select(row for row, path in enumerate(table.paths) if path not in broken)
    before, asked = (
        asked_of(metadata, each, {name: metadata.get(name) for name in CHOSEN})
        for metadata, each in ((facts.metadata, facts), (shards.metadata, kept))
    )
    check_same(shards.out, before, asked)


def check_embeddings(out: Path, as_folder: bool) -> None:
    """Refuse to write over anything but embeddings, such as a search index or a table of regions.

    Raises:
        UserError: the place holds something else, is a file instead of a folder or the other way round, or is named as
            a file of another format.
    """
    if out.is_dir() and not as_folder:
        raise UserError(f"{out} is a folder; end `out` in a slash to make it a directory of shards, or name a file")
    if out.is_file() and as_folder:
        raise UserError(f"{out} is a file; give another name for a directory of shards")
    check_place(out, "embeddings", foreign_to_embeddings)
    check_parquet(out)


def foreign_to_embeddings(out: Path) -> str | None:
    """Return what tells a file or folder from embeddings, or ``None`` if it is a table of them, or empty."""
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if foreign := [name for name in names if not SHARD_NAME.fullmatch(name)]:
        return repr(foreign[0])
    if out.is_dir() and not names:
        return None
    try:
        read_facts(out)
    except UserError:
        return "not a table of embeddings"
    columns = set(pq.read_schema(out).names) - {*TEXTS, GROUP, NUMBER, "embedding"} if out.is_file() else set()
    return f"a column {min(columns)!r}" if columns else None


def make_folder(shards: Shards) -> None:
    """Make the folder for the shards, before any work.

    Raises:
        UserError: it cannot be made.
    """
    try:
        shards.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(shards.out, error) from error
