"""The feature cache on disk: tables of embeddings in a folder per space; the least recently used are removed first.

An entry is an embeddings table whose label column holds the stamp of each image, since embeddings do not depend on
labels. So any later table finds the images that have not changed, whatever their labels.
"""

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from transferkit.data import label_columns
from transferkit.data.embeddings import Facts, metadata_of, read_facts, with_metadata, writer
from transferkit.data.fingerprint import fingerprint
from transferkit.data.image_table import ImageTable
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.errors import UserError
from transferkit.extractor.quantization import int8_folder
from transferkit.images.decoding import decoders
from transferkit.runtime.files import atomic_path, cache_dir, discard

log = logging.getLogger(__name__)

DEFAULT_LIMIT = "20GB"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
INTERRUPTED = 24 * 3600  # seconds; more recent shards may belong to a command that still runs

in_use: set[Path] = set()
"""Entries that this process has read or written, and does not remove."""


def cache_limit() -> int:
    """Return the limit of the feature cache in bytes, from ``TRANSFERKIT_CACHE_LIMIT`` such as ``500MB`` or ``20GB``.

    Raises:
        UserError: the variable is not a size.
    """
    text = os.environ.get("TRANSFERKIT_CACHE_LIMIT") or DEFAULT_LIMIT
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise UserError(f"TRANSFERKIT_CACHE_LIMIT is {text[:80]!r}, not a size; give one such as 500MB or 20GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def entries_folder(space: EmbeddingSpace, view: str = "none") -> Path:
    """Return the folder of the cached tables of one space and random view, with the installed image decoders."""
    return cache_root() / sha256(f"{space.sha256} {view} {decoders()}".encode()).hexdigest()[:32]


def cache_root() -> Path:
    """Return the folder of all spaces, as an absolute path."""
    return cache_dir().absolute() / "features"


class Damaged(Exception):
    """An entry could not be read and was removed."""


class Place(NamedTuple):
    """Where the embedding of an image is."""

    file: Path
    row: int


@dataclass(frozen=True)
class Known:
    """What the cache has of the images of a table.

    Attributes:
        places: path -> where its embedding is.
        broken: path -> why the image cannot be read.
        missing: rows of the table that are in neither.
        foreign: number of embeddings that were computed as part of another table, so that their last bits may differ
            from those with an empty cache.
    """

    places: Mapping[str, Place]
    broken: Mapping[str, str]
    missing: Sequence[int]
    foreign: int


def look_up(folder: Path, paths: Sequence[str], stamps: Sequence[str], exact: bool = False) -> Known:
    """Find the embeddings of unchanged images in the tables of a folder.

    The tables that hold the most of them come first, so that one that holds all is the only one read.

    Args:
        folder: folder of the space.
        paths: paths of the images, sorted.
        stamps: stamp of each image.
        exact: use only the table of exactly these images, since a random view depends on the row.
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
    """Read the images of an entry; return ``None`` if it does not exist, or was damaged and is now removed."""
    if not file.is_file():
        return None
    try:
        return read_facts(file)
    except UserError as error:
        log.warning("removed a damaged entry of the feature cache: %s", error)
        discard(file)
        return None


def take(places: Sequence[Place], width: int) -> Tensor:
    """Read embeddings from their entries, and mark these as used now.

    Returns:
        float32 (N, width), in the given order.

    Raises:
        Damaged: an entry could not be read and was removed.
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
    """Read some rows of a table, and only the row groups that they are in: float32 (N, width)."""
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
    """Mark an entry as used now and by this process."""
    in_use.add(file)
    with suppress(OSError):  # of another user
        os.utime(file)


def stamped(table: ImageTable, rows: Sequence[int], stamps: Sequence[str]) -> ImageTable:
    """Return some rows of a table as an entry holds them: with stamps as labels, without splits."""
    part = table.select(rows)
    return replace(part, labels=tuple(stamps), splits=(None,) * len(part), groups=None, kind="class")


def deposit(out: Path, table: ImageTable, stamps: Sequence[str], space: EmbeddingSpace) -> None:
    """Keep a copy of a written table as an entry, unless it would take more than a quarter of the cache.

    It is not a link, since other programs may change the file.
    """
    if out.stat().st_size > cache_limit() / 4:
        return
    of_path = dict(zip(table.paths, stamps, strict=True))
    target = entries_folder(space) / f"{fingerprint(table.paths, stamps)}.parquet"
    with pq.ParquetFile(out) as source:
        schema = label_columns.unpack(source.schema_arrow.empty_table())[0].schema
        metadata = metadata_of(schema, out) | {"images": table.root}
        with atomic_path(target) as temporary, writer(temporary, with_metadata(schema, metadata)) as parquet:
            for group in range(source.num_row_groups):
                part, _ = label_columns.unpack(source.read_row_group(group))
                labels = pa.array([of_path[path] for path in part["path"].to_pylist()], pa.string())
                parquet.write_table(part.set_column(part.column_names.index("label"), "label", labels))
    touch(target)
    trim()


def forget(folder: Path, paths: Sequence[str], stamps: Sequence[str]) -> None:
    """Remove the entries of a folder that hold only these images."""
    given = set(zip(paths, stamps, strict=True))
    for file in folder.glob("*.parquet"):
        facts = facts_of(file)
        if facts and given.issuperset(zip(facts.paths, facts.labels, strict=True)):
            with suppress(OSError):  # another process has removed it
                discard(file)


class Entry(NamedTuple):
    """One table of the cache, or the shards of an interrupted one, a database of decoded images, or a dataset."""

    file: Path
    bytes: int
    used: float  # seconds since 1970

    @property
    def is_partial(self) -> bool:
        """Whether it is the shards of an incomplete table."""
        return self.file.suffix == ".parts"

    @property
    def is_network(self) -> bool:
        """Whether it is a network in int8, which :mod:`transferkit.extractor.quantization` keeps."""
        return self.file.suffix == ".onnx"


def entries() -> Iterator[Entry]:
    """Yield the entries of the cache, including those of earlier versions and networks, in no particular order."""
    patterns = ("*.parquet", ".*.parts", "*/*.parquet", "*/.*.parts")
    return present(chain(int8_folder().glob("*.onnx"), *map(cache_root().glob, patterns)))


def decoded() -> Iterator[Entry]:
    """Yield the databases of the images that were decoded, see :mod:`transferkit.data.memory`."""
    return present(cache_dir().absolute().glob("decoded/*.sqlite"))


def datasets() -> Iterator[Entry]:
    """Yield the datasets in the cache; they are outside of its limit, since users may have put them there."""
    return present(cache_dir().absolute().glob("datasets/[!.]*"))


def present(files: Iterable[Path]) -> Iterator[Entry]:
    """Yield the entries of files and directories that no other process removes meanwhile."""
    for file in files:
        with suppress(OSError):
            inside = [part for part in file.rglob("*") if part.is_file()] if file.is_dir() else [file]
            status = [part.stat() for part in inside] or [file.stat()]
            yield Entry(file, sum(one.st_size for one in status), max(one.st_mtime for one in status))


def trim() -> None:
    """Remove the least recently used entries until the cache is within its limit.

    Entries that this process has used are kept, and shards and networks of the last day, whose command may still run.
    """
    limit, now = cache_limit(), time.time()
    found = sorted([*entries(), *decoded()], key=lambda entry: entry.used)
    total = sum(entry.bytes for entry in found)
    for entry in found:
        if total <= limit:
            return
        may_run = (entry.is_partial or entry.is_network) and now - entry.used < INTERRUPTED
        if entry.file in in_use or may_run:
            continue
        remove(entry)
        total -= entry.bytes


def remove(entry: Entry) -> None:
    """Remove an entry, and its folder if that is then empty."""
    with suppress(OSError):  # another process has removed it
        discard(entry.file)
    if entry.file.parent != cache_root():
        with suppress(OSError):  # not empty
            entry.file.parent.rmdir()
