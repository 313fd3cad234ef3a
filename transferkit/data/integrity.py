"""Which images are broken: each is decoded in full once, and that is remembered by path and stamp."""

import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from transferkit.data import memory
from transferkit.data.image_table import DIGITS, ImageTable
from transferkit.errors import UserError
from transferkit.images.decoding import ImageError
from transferkit.runtime.cores import cores
from transferkit.runtime.progress import progress_bar
from transferkit.runtime.ranks import Ranks

_log = logging.getLogger(__name__)
_ROUND = 16384  # images between two savings: what a killed process has to decode again, at most

_MISSING = os.strerror(errno.ENOENT).lower()
MOST_NAMED = 50  # named in one line; a manifest with a wrong path has them by the thousand

_PASSING = {os.strerror(number).lower() for number in errno.errorcode}

Seen = TypeVar("Seen")


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


def verify_together(table: ImageTable, ranks: Ranks) -> dict[str, str]:
    """As :func:`verify`, where several processes of one fit ask for the same: each decodes a share.

    Args:
        table: images, the same in all processes.
        ranks: the processes, see :func:`~transferkit.runtime.ranks.joined`.
    """
    shares = ranks.run_on_all(lambda: verify(table, range(ranks.rank, len(table), ranks.world_size)))
    broken = {name: reason for share in shares for name, reason in share.items()}
    return dict(sorted(broken.items()))


def recall(table: ImageTable, rows: Sequence[int] | None = None) -> dict[str, str | None]:
    """What is known of images that have not changed since they were decoded.

    Returns:
        Path -> reason why it cannot be decoded, or ``None`` for a good image; unknown ones are left out.
    """
    names = [table.paths[row] for row in (range(len(table)) if rows is None else rows)]
    if table.root == DIGITS:
        return dict.fromkeys(names)
    return memory.known(table.root, names)


def remember(table: ImageTable, results: Mapping[str, str | None]) -> None:
    """Keep what was found by decoding, for ``recall`` and ``verify`` in this and in later processes.

    What the system says of a file is not remembered: rights, a network drive, or memory change without a trace.

    Args:
        table: images.
        results: path -> reason why it cannot be decoded, or ``None`` for a good image.
    """
    if table.root == DIGITS or not results:
        return
    try:
        memory.add(table.root, {name: reason for name, reason in results.items() if reason not in _PASSING})
    except UserError as error:  # a read-only home costs time, not the run
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
