"""Which images are broken: each is decoded in full once, and that is remembered by path, size and time."""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from transferkit.data.sources import DIGITS, ImageTable
from transferkit.errors import UserError
from transferkit.files import atomic_path, cache_dir
from transferkit.images import ImageError, decoders
from transferkit.progress import progress_bar

_log = logging.getLogger(__name__)
_ROUND = 16384  # images between two savings: what a killed process has to decode again, at most

_MISSING = os.strerror(errno.ENOENT).lower()
MOST_NAMED = 50  # named in one line; a manifest with a wrong path has them by the thousand

_PASSING = {os.strerror(number).lower() for number in errno.errorcode}

Seen = TypeVar("Seen")

# Path -> (size in bytes, modification time in ns, reason why it cannot be decoded or None).
_Memory = dict[str, tuple[int, int, str | None]]


def verify(table: ImageTable, rows: Sequence[int] | None = None, workers: int | None = None) -> dict[str, str]:
    """Decode every image that is not remembered, and name those that cannot be decoded.

    Args:
        table: images.
        rows: those to look at; all if ``None``.
        workers: decoding threads; one a core if ``None``.

    Returns:
        Path of each broken image -> the reason, in path order.
    """
    rows = range(len(table)) if rows is None else sorted(rows)
    results = recall(table, rows)
    pending = [row for row in rows if table.paths[row] not in results]
    results |= each(table, pending, partial(_fault, table), lambda fault: fault, workers)
    names = (table.paths[row] for row in rows)
    return {name: reason for name in names if (reason := results[name]) is not None}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recall(table: ImageTable, rows: Sequence[int] | None = None) -> dict[str, str | None]:
    """What is known of images that have not changed since they were decoded.

    Returns:
        Path -> reason why it cannot be decoded, or ``None`` for a good image; unknown ones are left out.
    """
    names = [table.paths[row] for row in (range(len(table)) if rows is None else rows)]
    if table.root == DIGITS:
        return dict.fromkeys(names)
    memory = _load(_memory_file(table.root))
    known: dict[str, str | None] = {}
    for name in names:
        if name in memory and memory[name][:2] == _size_and_time(table.root, name):
            known[name] = memory[name][2]
    return known


def remember(table: ImageTable, results: Mapping[str, str | None]) -> None:
    """Keep what was found by decoding, for ``recall`` and ``verify`` in this and in later processes.

    What the system says of a file is not remembered: rights, a network drive, or memory change without a trace.
    Where two processes write at once, one of the additions is lost and decoded again some day.

    Args:
        table: images.
        results: path -> reason why it cannot be decoded, or ``None`` for a good image.
    """
    if table.root == DIGITS or not results:
        return
    target = _memory_file(table.root)
    memory = _load(target)
    for name, reason in results.items():
        key = _size_and_time(table.root, name)
        if key is not None and reason not in _PASSING:
            memory[name] = (*key, reason)
    sizes, times, reasons = zip(*memory.values(), strict=True) if memory else ((), (), ())
    columns = {
        "path": pa.array(memory, pa.string()),
        "size": pa.array(sizes, pa.int64()),
        "mtime_ns": pa.array(times, pa.int64()),
        "reason": pa.array(reasons, pa.string()),
    }
    try:
        with atomic_path(target) as temporary:
            pq.write_table(pa.table(columns), temporary)
    except (UserError, OSError) as error:  # a read-only home costs time, not the run
        _log.warning("images will be checked again next time: %s", error)


def raise_broken(bad: Mapping[str, str], source: str, remedy: str = "leave out with --data.on_error skip") -> None:
    """Stop if there are broken images, naming all of them in one line; of missing ones the first 50.

    Args:
        bad: path -> reason.
        source: what ``transferkit scan`` finds them all in.
        remedy: what else than repairing or deleting them helps.

    Raises:
        UserError: ``bad`` is not empty.
    """
    if bad:
        missing = [name for name, reason in bad.items() if reason == _MISSING]
        untold = set(missing[MOST_NAMED:])
        named = "; ".join(f"{name!r}: {reason}" for name, reason in bad.items() if name not in untold)
        more = f"; and {len(untold):,} more: {_MISSING} (transferkit scan {source} --json lists all)" if untold else ""
        noun = "image" if len(bad) == 1 else "images"
        raise UserError(f"{len(bad)} broken {noun}: {named}{more}; repair or delete, or {remedy}")


def each(
    table: ImageTable,
    rows: Sequence[int],
    see: Callable[[int], Seen],
    reason: Callable[[Seen], str | None],
    workers: int | None = None,
) -> dict[str, Seen]:
    """See to rows in threads (the decoders release the interpreter's lock) and remember what was decoded.

    Args:
        table: images.
        rows: those to look at.
        see: what to do with a row.
        reason: of its result: why the image cannot be decoded, or ``None`` for a good one.
        workers: threads; one a core if ``None``.

    Returns:
        Path -> result, in the order of ``rows``.
    """
    results: dict[str, Seen] = {}
    with progress_bar("checking images", len(rows)) as advance, ThreadPoolExecutor(workers or cores()) as pool:
        try:
            for start in range(0, len(rows), _ROUND):
                block = rows[start : start + _ROUND]
                found: dict[str, Seen] = {}
                try:
                    for row, seen in zip(block, pool.map(see, block), strict=True):
                        found[table.paths[row]] = seen
                        advance(1)
                finally:
                    remember(table, {path: reason(seen) for path, seen in found.items()})
                results |= found
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the images that are queued
    return results


def _fault(table: ImageTable, row: int) -> str | None:
    try:
        table.read(row)
    except ImageError as error:
        return str(error)
    return None


def _memory_file(root: str) -> Path:
    # Another version of a decoder may read what this one cannot, and the other way round; so may a new package.
    key = f"{root}\0{decoders()}"
    return cache_dir() / "decoded" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.parquet"


def _load(path: Path) -> _Memory:
    """The memory of one root; empty if there is none or it cannot be read."""
    try:
        columns = pq.read_table(path, columns=["path", "size", "mtime_ns", "reason"]).to_pydict()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, pa.ArrowException) as error:
        _log.warning("ignoring the memory of checked images in %s, it is damaged: %s", path, error)
        return {}
    facts = zip(columns["size"], columns["mtime_ns"], columns["reason"], strict=True)
    return dict(zip(columns["path"], facts, strict=True))


def _size_and_time(root: str, name: str) -> tuple[int, int] | None:
    try:
        status = Path(root, name).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
