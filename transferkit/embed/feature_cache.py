"""The feature cache on disk: tables of embeddings, a folder for each space, the least recently used gone first.

An entry is an embeddings table whose label column holds the stamp of each image instead of its label, on which no
embedding depends: so any later table finds the images that have not changed, whatever they are called today.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.data.embeddings import Facts, metadata_of, read_facts, with_metadata, writer
from transferkit.data.fingerprint import fingerprint
from transferkit.data.image_table import ImageTable
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.errors import UserError
from transferkit.images.decoding import decoders
from transferkit.runtime.files import atomic_path, cache_dir, discard

log = logging.getLogger(__name__)

DEFAULT_LIMIT = "20GB"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
INTERRUPTED = 24 * 3600  # seconds: shards that were written since may belong to a command that still runs

in_use: set[Path] = set()
"""Entries that this process has read or written: they are not removed by it."""


def cache_limit() -> int:
    """Bytes that the feature cache may take, from ``TRANSFERKIT_CACHE_LIMIT`` such as ``500MB`` or ``20GB``.

    Raises:
        UserError: it is not a size.
    """
    text = os.environ.get("TRANSFERKIT_CACHE_LIMIT") or DEFAULT_LIMIT
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise UserError(f"TRANSFERKIT_CACHE_LIMIT is {text[:80]!r}, not a size; give one such as 500MB or 20GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def entries_folder(space: EmbeddingSpace, view: str = "none") -> Path:
    """The folder of all cached tables of one space, as the decoders that are installed see images, and of one view."""
    return cache_root() / sha256(f"{space.sha256} {view} {decoders()}".encode()).hexdigest()[:32]


def cache_root() -> Path:
    """The folder of all spaces, absolute whatever the cache's name is relative to."""
    return cache_dir().absolute() / "features"


class Damaged(Exception):
    """An entry could not be read, and is removed."""


class Place(NamedTuple):
    """Where the embedding of an image is kept."""

    file: Path
    row: int


@dataclass(frozen=True)
class Known:
    """What the cache knows of the images of a table.

    Attributes:
        places: path -> where its embedding is kept.
        broken: path -> why it cannot be read.
        missing: rows of the table that are neither.
        foreign: how many of the embeddings were computed among other images than these: their last bits may
            differ from those that an empty cache gives.
    """

    places: Mapping[str, Place]
    broken: Mapping[str, str]
    missing: Sequence[int]
    foreign: int


def look_up(folder: Path, paths: Sequence[str], stamps: Sequence[str], exact: bool = False) -> Known:
    """Find the embeddings of unchanged images in the tables of a folder.

    The tables that hold the most of them are asked first, so that one that covers all serves all.

    Args:
        folder: of the space.
        paths: of the images, sorted.
        stamps: of each image.
        exact: take nothing but the table of just these images: a random view depends on the row.
    """
    wanted = dict(zip(paths, stamps, strict=True))
    places: dict[str, Place] = {}
    broken: dict[str, str] = {}
    own = folder / f"{fingerprint(paths, stamps)}.parquet"
    found: list[tuple[int, Path, dict[str, Place]]] = []
    for file in [own] if exact else folder.glob("*.parquet"):
        if (facts := facts_of(file)) is None:
            continue
        rows_of = enumerate(zip(facts.paths, facts.labels, strict=True))
        rows = {path: Place(file, row) for row, (path, label) in rows_of if wanted.get(path) == label}
        found.append((len(rows), file, rows))
        if file == own:
            broken = dict(facts.metadata.get("broken", {}))
    for _, _, rows in sorted(found, key=lambda one: (one[1] != own, -one[0], one[1].name)):
        for path, place in rows.items():
            places.setdefault(path, place)
    missing = [row for row, path in enumerate(paths) if path not in places and path not in broken]
    foreign = sum(place.file != own for place in places.values())
    return Known(places, {path: broken[path] for path in sorted(broken)}, missing, foreign)


def facts_of(file: Path) -> Facts | None:
    """What an entry says of its images; ``None`` if there is none, or it was damaged and is now removed."""
    if not file.is_file():
        return None
    try:
        return read_facts(file)
    except UserError as error:
        log.warning("removed a damaged entry of the feature cache: %s", error)
        discard(file)
        return None


def take(places: Sequence[Place], width: int) -> Tensor:
    """Read embeddings from the entries they are kept in, and mark these as used now.

    Returns:
        float32 (N, width), in the order given.

    Raises:
        Damaged: an entry could not be read, and is removed.
    """
    values = torch.empty(len(places), width)
    of_file: dict[Path, list[int]] = {}
    for position, place in enumerate(places):
        of_file.setdefault(place.file, []).append(position)
    for file, positions in of_file.items():
        try:
            values[positions] = read_rows(file, [places[position].row for position in positions], width)
        except (OSError, pa.ArrowException, ValueError, IndexError) as error:
            discard(file)
            raise Damaged(str(file)) from error
        touch(file)
    return values


def read_rows(file: Path, rows: Sequence[int], width: int) -> Tensor:
    """Read some rows of a table, and no more of it than the groups that they are in."""
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        groups, inside = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        column = parquet.read_row_groups(groups.tolist(), columns=["embedding"])["embedding"]
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    kept = np.array([sizes[group] for group in groups])
    starts = (np.cumsum(kept) - kept)[inside]
    places = starts + np.asarray(rows) - (ends - sizes)[groups][inside]
    return torch.from_numpy(flat.reshape(-1, width))[torch.from_numpy(places)]


def touch(file: Path) -> None:
    """Mark an entry as used now, and as in use by this process."""
    in_use.add(file)
    with suppress(OSError):  # somebody else's
        os.utime(file)


def stamped(table: ImageTable, rows: Sequence[int], stamps: Sequence[str]) -> ImageTable:
    """Some rows of a table as an entry holds them: with stamps for labels, without splits."""
    part = table.select(rows)
    return replace(part, labels=tuple(stamps), splits=(None,) * len(part))


def deposit(out: Path, table: ImageTable, stamps: Sequence[str], space: EmbeddingSpace) -> None:
    """Keep a copy of a written table as an entry, unless it would take more than a quarter of the cache.

    A link would not do: other programs write into the file that they are given.
    """
    if out.stat().st_size > cache_limit() / 4:
        return
    of_path = dict(zip(table.paths, stamps, strict=True))
    target = entries_folder(space) / f"{fingerprint(table.paths, stamps)}.parquet"
    with pq.ParquetFile(out) as source:
        schema = source.schema_arrow
        metadata = metadata_of(schema, out) | {"images": table.root}
        with atomic_path(target) as temporary, writer(temporary, with_metadata(schema, metadata)) as parquet:
            for group in range(source.num_row_groups):
                part = source.read_row_group(group)
                labels = pa.array([of_path[path] for path in part["path"].to_pylist()], pa.string())
                parquet.write_table(part.set_column(part.column_names.index("label"), "label", labels))
    touch(target)
    trim()


def forget(folder: Path, paths: Sequence[str], stamps: Sequence[str]) -> None:
    """Remove the entries of a folder that hold no other images than these."""
    given = set(zip(paths, stamps, strict=True))
    for file in folder.glob("*.parquet"):
        facts = facts_of(file)
        if facts and given.issuperset(zip(facts.paths, facts.labels, strict=True)):
            with suppress(OSError):  # another process was faster
                discard(file)


class Entry(NamedTuple):
    """One table of the cache, or the shards of an interrupted one."""

    file: Path
    bytes: int
    used: float  # seconds since 1970

    @property
    def is_partial(self) -> bool:
        """Whether it is the shards of a table that is not whole."""
        return self.file.suffix == ".parts"


def entries() -> Iterator[Entry]:
    """List the feature cache in no particular order; those of earlier versions, too."""
    patterns = ("*.parquet", ".*.parts", "*/*.parquet", "*/.*.parts")
    for file in chain.from_iterable(map(cache_root().glob, patterns)):
        with suppress(OSError):  # removed meanwhile
            inside = list(file.iterdir()) if file.is_dir() else [file]
            status = [part.stat() for part in inside] or [file.stat()]
            yield Entry(file, sum(one.st_size for one in status), max(one.st_mtime for one in status))


def trim() -> None:
    """Remove the least recently used entries until the cache keeps to its limit.

    What this process has used stays, and so do shards of the last day: their command may still run.
    """
    limit, now = cache_limit(), time.time()
    found = sorted(entries(), key=lambda entry: entry.used)
    total = sum(entry.bytes for entry in found)
    for entry in found:
        if total <= limit:
            return
        if entry.file in in_use or (entry.is_partial and now - entry.used < INTERRUPTED):
            continue
        remove(entry)
        total -= entry.bytes


def remove(entry: Entry) -> None:
    """Remove an entry, and its folder once that is empty."""
    with suppress(OSError):  # another process was faster
        discard(entry.file)
    if entry.file.parent != cache_root():
        with suppress(OSError):  # not empty
            entry.file.parent.rmdir()
