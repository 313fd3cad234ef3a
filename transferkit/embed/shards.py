"""Embedding a table of images into Parquet: shards as it goes, joined at the end, resumable."""

import glob
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from transferkit.data.embeddings import TEXTS, read_facts, with_metadata, writer
from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import raise_broken
from transferkit.embed.in_memory import View, batch_ranges, make_table, run, usual_batch_size
from transferkit.errors import ToldByFirst, UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.runtime.files import TEMPORARY, atomic_path, discard, install, sweep, through_links, unwritable

SHARD_BATCHES = 16  # a killed run repeats at most this many batches
SHARD_BYTES = 2**26  # fewer batches a shard where an image gives many numbers
SHARD_NAME = re.compile(rf"\d{{6,}}\.parquet|{TEMPORARY.pattern}")  # or half-written by a killed run
IGNORED = {"broken": {}, "reused": 0}  # of the metadata, when it is asked whether a file is what would be written
SKIP = "leave out with --on_error skip, which keeps what is done"


class Written(NamedTuple):
    """What a file of embeddings holds: rows, reasons of the images left out, and how many were embedded now."""

    images: int
    broken: dict[str, str]
    embedded: int


@dataclass(frozen=True)
class Shards:
    """The parts of a file of embeddings, in a folder beside it until it is whole.

    Attributes:
        out: the file, or directory of shards, in the end.
        folder: named by all that the content depends on, so that no stale shard is ever taken up.
        batches: row ranges of each batch of each shard.
    """

    out: Path
    folder: Path
    batches: list[list[range]]

    @property
    def files(self) -> list[Path]:
        """The file of each shard, in row order."""
        return [self.folder / f"{number:06d}.parquet" for number in range(len(self.batches))]

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [number for number, file in enumerate(self.files) if not file.is_file()]

    def rows(self, number: int) -> int:
        """How many rows a shard has, unreadable ones counted."""
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
    rank: int = 0,
    world_size: int = 1,
    agree: Callable[[bool], bool] = bool,
) -> Written:
    """Embed a table into Parquet, its rows in path order; started again, it does only what is missing.

    Batches are cut from the sorted paths at fixed places and shards from the batches, and each process
    takes whole shards, so neither an interruption nor the number of processes changes a bit of the result.
    Unreadable images are left out and named in the metadata under ``broken``.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        out: the Parquet file.
        metadata: what :func:`~transferkit.embed.describe` says of them.
        forward: what is kept of each image; by default the extractor's embedding in float32.
        batch_size: images a forward pass; see :func:`~transferkit.embed.in_memory.usual_batch_size`.
        on_error: ``fail`` names every unreadable image and writes no file, but keeps the shards; ``skip``
            does so only if none can be read, ``record`` never.
        as_folder: ``out`` becomes a directory of shards.
        view: a random view of the images instead of their preprocessing.
        workers: threads; by default one a core.
        rank: number of this process.
        world_size: how many processes share the work, and the file system.
        agree: waits for all of them; whether what it is given is true in every one.

    Raises:
        UserError: the place cannot be written, or holds something else; unreadable images.
    """
    batch_size = batch_size or usual_batch_size(extractor.device)
    metadata = {**metadata, "batch_size": batch_size}
    check_place(out, as_folder)
    out = through_links(out)  # shards lie on the disk that the whole of them is to lie on
    sweep(out.absolute().parent)
    found = written_before(out, table, metadata)
    if agree(found is not None):
        assert found is not None
        discard_parts(out)
        if on_error == "fail":
            raise_broken(found.broken, table.source, SKIP)
        return found
    shards = plan(out, table, metadata, batch_size)
    missing = shards.missing()
    mine = [number for number in missing if number % world_size == rank]

    def fill() -> None:
        make_folder(shards)
        batches = [rows for number in mine for rows in shards.batches[number]]
        kept = forward or extractor.forward()
        with closing(run(extractor, table, batches, kept, view, workers, show=rank == 0)) as results:
            for number in mine:
                parts = [next(results) for _ in shards.batches[number]]
                rows = [row for part in parts for row in part.rows]
                values = [part.embedding for part in parts if part.rows] or [torch.empty(0, metadata["embed_dim"])]
                broken = {table.paths[row]: str(fault) for part in parts for row, fault in part.broken.items()}
                whole = make_table(table, rows, torch.cat(values), {**metadata, "broken": broken})
                try:
                    whole.save(shards.files[number])
                except UserError:  # another command has written the same meanwhile and removed the shards
                    if written_before(out, table, metadata) is None:
                        raise
                    return

    together(fill, agree, rank)
    done: list[tuple[int, dict[str, str]]] = []
    together(
        lambda: done.append(finish(shards, table, metadata, on_error, as_folder)) if rank == 0 else None, agree, rank
    )
    images, broken = done[0] if done else (0, {})
    return Written(images, broken, sum(map(shards.rows, missing)))


def together(work: Callable[[], None], agree: Callable[[bool], bool], rank: int) -> None:
    """Do a share of the work and wait for the other processes; where one fails, none is left waiting.

    Raises:
        UserError: another process failed; the first process tells the user.
    """
    fault: Exception | None = None
    try:
        work()
    except Exception as error:  # whatever it is, the others have to hear of it first
        fault = error
    done = agree(fault is None)
    if fault:
        raise fault
    if not done:
        raise (ToldByFirst if rank else UserError)("another process could not go on; its own message says why")


def plan(out: Path, table: ImageTable, metadata: Mapping[str, Any], batch_size: int) -> Shards:
    """Cut a table into shards of whole batches, the same for any number of processes."""
    size = max(1, min(SHARD_BATCHES, SHARD_BYTES // (4 * metadata["embed_dim"] * batch_size)))
    batches = batch_ranges(len(table), batch_size)
    content = [dict(metadata), table.labels, table.splits, size]
    key = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = out.with_name(f".{out.name}.{key[:16]}.parts")
    return Shards(out, folder, [batches[i : i + size] for i in range(0, len(batches), size)])


def finish(
    shards: Shards, table: ImageTable, metadata: Mapping[str, Any], on_error: str, as_folder: bool
) -> tuple[int, dict[str, str]]:
    """Make the whole of the shards; how many rows it has, and why which images are left out.

    Another command that writes the same at the same time may have been faster, and have removed the shards.

    Raises:
        UserError: see :func:`assemble`.
    """
    try:
        return assemble(shards, table, metadata, on_error, as_folder)
    except (UserError, FileNotFoundError):
        found = written_before(shards.out, table, metadata)
        if found is None or (found.broken and on_error == "fail"):
            raise
        discard_parts(shards.out)
        return found.images, found.broken


def assemble(
    shards: Shards, table: ImageTable, metadata: Mapping[str, Any], on_error: str, as_folder: bool
) -> tuple[int, dict[str, str]]:
    """As :func:`finish`.

    Raises:
        UserError: a row is missing or there twice; unreadable images; the place cannot be written.
    """
    paths: list[str] = []
    broken: dict[str, str] = {}
    for file in shards.files:
        facts = read_facts(file)
        paths += facts.paths
        broken |= facts.metadata["broken"]
    if sorted([*paths, *broken]) != list(table.paths) or paths != sorted(paths):
        raise UserError(f"{shards.folder} does not hold every row exactly once; delete it and start again")
    if on_error == "fail":
        raise_broken(broken, table.source, SKIP)
    if not paths and on_error == "skip":
        raise UserError(f"none of the {len(table)} images can be read; see transferkit scan {table.source}")
    whole = {**metadata, "broken": broken}
    if as_folder:
        try:
            install(shards.folder, shards.out)
        except OSError as error:
            raise unwritable(shards.out, error) from error
    else:
        with atomic_path(shards.out) as temporary:
            join(shards.files, temporary, whole)
    discard_parts(shards.out)
    return len(paths), broken


def discard_parts(out: Path) -> None:
    """Remove the shards of a file that is whole, those of earlier runs and of another content, too."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.parts"):
        discard(folder)


def join(files: list[Path], out: Path, metadata: Mapping[str, Any]) -> None:
    """Join shards in order into one file, one of them in memory at a time."""
    with writer(out, with_metadata(pq.read_schema(files[0]), metadata)) as parquet:
        for file in files:
            parquet.write_table(pq.read_table(file).replace_schema_metadata(parquet.schema.metadata))


def written_before(out: Path, table: ImageTable, metadata: Mapping[str, Any]) -> Written | None:
    """What an earlier run has written to the same place, if it is what this one would write."""
    try:
        facts = read_facts(out)
    except UserError:
        return None
    broken = facts.metadata.get("broken", {})
    same = {**facts.metadata, **IGNORED} == {**metadata, **IGNORED}
    rows = zip(table.paths, table.labels, table.splits, strict=True)
    wanted = [row for row in rows if row[0] not in broken]
    if not same or wanted != list(zip(facts.paths, facts.labels, facts.splits, strict=True)):
        return None
    return Written(len(wanted), broken, 0)


def check_place(out: Path, as_folder: bool) -> None:
    """Refuse to write over what is not embeddings alone, such as a search index or a table of regions.

    Raises:
        UserError: saying what is there.
    """
    if out.is_dir() and not as_folder:
        raise UserError(f"{out} is a folder; end --out in a slash to make it one of shards, or give a file's name")
    if out.is_file() and as_folder:
        raise UserError(f"{out} is a file; give another name for a directory of shards")
    other = "holds something else than embeddings"
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if foreign := [name for name in names if not SHARD_NAME.fullmatch(name)]:
        raise UserError(f"--out {out} {other} ({foreign[0]!r}); give another name")
    if names or (out.exists() and not out.is_dir()):
        try:
            read_facts(out)
        except UserError as error:
            raise UserError(f"--out {out} {other}; give another name") from error
    if out.is_file() and (columns := set(pq.read_schema(out).names) - {*TEXTS, "embedding"}):
        raise UserError(f"--out {out} {other} (a column {min(columns)!r}); give another name")


def make_folder(shards: Shards) -> None:
    """Make the folder for the shards: a place that cannot be written is found before any work.

    Raises:
        UserError: saying why.
    """
    try:
        shards.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(shards.out, error) from error
