"""Which images are broken: each is decoded in full once, and the result is remembered by path and stamp."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from transferkit.data import memory
from transferkit.data.image_table import ImageTable
from transferkit.data.manifest import MANIFEST_SUFFIXES
from transferkit.errors import UserError, listed
from transferkit.images.error import PASSING, Fault, ImageError
from transferkit.runtime.cores import cores
from transferkit.runtime.progress import progress_bar
from transferkit.runtime.ranks import Ranks

log = logging.getLogger(__name__)
ROUND = 16384  # images between two savings: at most so many are decoded again after a process is killed
MOST_NAMED = 3  # with one reason, in one line; `scan` lists all
NOT_THERE = os.strerror(errno.ENOENT).lower()

Seen = TypeVar("Seen")


def verify(table: ImageTable, rows: Sequence[int] | None = None, workers: int | None = None) -> dict[str, Fault]:
    """Decode every image that is not remembered, and return those that cannot be decoded.

    Args:
        table: images.
        rows: rows to check; all if ``None``.
        workers: decoding threads; by default one per core.

    Returns:
        Path of each broken image -> why, in path order.
    """
    rows = range(len(table)) if rows is None else sorted(rows)
    results = recall(table, rows)
    pending = [row for row in rows if table.paths[row] not in results]
    results |= each(table, pending, partial(fault_of, table), lambda fault: fault, workers)
    names = (table.paths[row] for row in rows)
    return {name: fault for name in names if (fault := results[name]) is not None}


def verify_together(table: ImageTable, ranks: Ranks) -> dict[str, Fault]:
    """:func:`verify` for several processes of one fit: each decodes a share, all get the whole result.

    Args:
        table: images, the same in all processes.
        ranks: the processes, see :func:`~transferkit.runtime.ranks.joined`.
    """
    shares = ranks.run_on_all(lambda: verify(table, range(ranks.rank, len(table), ranks.world_size)))
    broken = {name: fault for share in shares for name, fault in share.items()}
    return dict(sorted(broken.items()))


def recall(table: ImageTable, rows: Sequence[int] | None = None) -> dict[str, Fault | None]:
    """Return what is remembered of images that have not changed since they were decoded.

    Returns:
        Path -> why it cannot be decoded, or ``None`` for a good image; unknown ones are left out.
    """
    names = [table.paths[row] for row in (range(len(table)) if rows is None else rows)]
    return dict.fromkeys(names) if table.in_memory else memory.known(table.root, names)


def remember(table: ImageTable, results: Mapping[str, Fault | None]) -> None:
    """Keep what was found by decoding, for ``recall`` and ``verify`` in this process and later ones.

    Faults that may pass without a change of the file (rights, a network drive) are not kept.

    Args:
        table: images.
        results: path -> why it cannot be decoded, or ``None`` for a good image.
    """
    if table.in_memory or not results:
        return
    try:
        memory.add(table.root, {name: why for name, why in results.items() if not why or why.kind not in PASSING})
    except UserError as error:  # a read-only cache costs time, not the run
        log.warning("images will be checked again next time: %s", error)


def raise_broken(
    bad: Mapping[str, str], source: str, remedy: str = 'leave out with `on_error="skip"`', of: int | None = None
) -> None:
    """Raise if there are broken images, naming them in one line; of those with one reason the first three.

    Args:
        bad: path -> why it cannot be decoded.
        source: the data, for the message.
        remedy: what helps other than repairing or deleting them.
        of: number of all images, if it is known: where most files of a manifest are missing, its folder is wrong.

    Raises:
        UserError: ``bad`` is not empty.
    """
    if not bad:
        return
    missing = [name for name, why in bad.items() if why == NOT_THERE]
    if of and 2 * len(missing) > of and Path(source).suffix.lower() in MANIFEST_SUFFIXES:
        listed_files = f"of the {of:,} files that {source!r} lists"
        some = f"none {listed_files} is" if len(missing) == of else f"{len(missing):,} {listed_files} are not"
        remedy = 'give the folder that contains them as `image_root="DIR"`'
        raise UserError(f"{some} there, such as {missing[0]!r}; {remedy}")
    count: Counter[str] = Counter()
    named = []
    for name, why in bad.items():
        count[why] += 1
        if count[why] <= MOST_NAMED:
            named.append(f"{name!r}: {why}")
    more = [f"and {total - MOST_NAMED:,} more: {why}" for why, total in count.items() if total > MOST_NAMED]
    hint = f" (scan {source!r} to see all)" if more else ""
    noun = "image" if len(bad) == 1 else "images"
    raise UserError(f"{len(bad)} broken {noun}: {'; '.join([*named, *more])}{hint}; repair or delete, or {remedy}")


def leave_out_broken(table: ImageTable, broken: Mapping[str, str], on_error: str) -> ImageTable:
    """Return a table without its unreadable images.

    Args:
        table: images.
        broken: path -> why it cannot be decoded.
        on_error: ``fail`` raises instead.

    Raises:
        UserError: there are some, with ``on_error="fail"``; or no image is left.
    """
    if not broken:
        return table
    if on_error == "fail":
        raise_broken(broken, table.source, of=len(table))
    log.warning("skipped %d unreadable images: %s", len(broken), listed(sorted(broken), MOST_NAMED))
    left = table.select(row for row, path in enumerate(table.paths) if path not in broken)
    if not len(left):
        raise UserError(f"none of the {len(table)} images can be read; scan {table.source} to see why")
    return left


def each(
    table: ImageTable,
    rows: Sequence[int],
    see: Callable[[int], Seen],
    fault: Callable[[Seen], Fault | None],
    workers: int | None = None,
) -> dict[str, Seen]:
    """Call a function that decodes for each row, in threads (decoders release the GIL), and remember the results.

    Args:
        table: images.
        rows: rows to decode.
        see: called with each row.
        fault: result of ``see`` -> why the image cannot be decoded, or ``None`` for a good one.
        workers: threads; by default one per core.

    Returns:
        Path -> result, in the order of ``rows``.
    """
    results: dict[str, Seen] = {}
    with progress_bar("checking images", len(rows)) as advance, ThreadPoolExecutor(workers or cores()) as pool:
        try:
            for start in range(0, len(rows), ROUND):
                block = rows[start : start + ROUND]
                found: dict[str, Seen] = {}
                try:
                    for row, seen in zip(block, pool.map(see, block), strict=True):
                        found[table.paths[row]] = seen
                        advance(1)
                finally:
                    remember(table, {path: fault(seen) for path, seen in found.items()})
                results |= found
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the images that are queued
    return results


def fault_of(table: ImageTable, row: int) -> Fault | None:
    """Return why an image cannot be decoded, or None."""
    try:
        table.read(row)
    except ImageError as error:
        return error.fault
    return None
