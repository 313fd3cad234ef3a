"""Images to embeddings, batch by batch, on all cores.

Decoding, resizing and the forward pass all release the interpreter's lock, so threads overlap them without
copying pixels between processes. On a CPU a thread takes a batch from its files to its embedding, each on
one core: threads that share one batch wait for each other at every layer, and the more so while others
decode. That also makes an embedding independent of the number of cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from transferkit.data.decoding import cores
from transferkit.images import ImageError


@dataclass(frozen=True)
class Batch:
    """What came of one batch of rows.

    Attributes:
        rows: the rows that could be read, ascending.
        embedding: float32 (len(rows), D) on the CPU.
        broken: row -> reason, for those that could not.
    """

    rows: list[int]
    embedding: Tensor
    broken: dict[int, str]


def stream(
    rows_of_batches: Iterable[range],
    read: Callable[[int], Tensor],
    forward: Callable[[Tensor], Tensor],
    workers: int | None = None,
    ahead: int = 3,
) -> Iterator[Batch]:
    """Embed batches of rows in order: threads decode ahead while the network runs in this one.

    A row that cannot be read takes part in the forward pass as a black image and is left out of the
    result, so that the other rows' last bits do not depend on it.

    Args:
        rows_of_batches: the rows of each batch.
        read: row -> preprocessed uint8 pixels (3, h, w); may raise ImageError.
        forward: uint8 (B, 3, h, w) -> float32 (B, D).
        workers: decoding threads; by default one a core, 8 at most.
        ahead: batches being decoded while one is in the network.
    """

    def submit(pool: ThreadPoolExecutor, rows: range) -> list[Future[Tensor | str]]:
        return [pool.submit(attempt, read, row) for row in rows]

    def finish(rows: range, futures: list[Future[Tensor | str]]) -> Batch:
        return run_batch(rows, [future.result() for future in futures], forward)

    with ThreadPoolExecutor(workers or min(8, cores()), "decode") as pool:
        yield from in_order(pool, rows_of_batches, submit, finish, ahead)


def stream_batches(
    rows_of_batches: Iterable[range],
    read: Callable[[int], Tensor],
    forward: Callable[[Tensor], Tensor],
    workers: int | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:
    """As :func:`stream`, each thread decoding and embedding whole batches on one core.

    Args:
        rows_of_batches: the rows of each batch.
        read: as of :func:`stream`; called from several threads at once.
        forward: likewise.
        workers: threads; by default one a core.
        stop: ends the passes under way, when nobody waits for them any more.
    """
    stopped = Event()

    def whole(rows: range) -> Batch:
        results: list[Tensor | str] = []
        for row in rows:
            if stopped.is_set():
                return Batch([], torch.empty(0, 0), {})
            results.append(attempt(read, row))
        return run_batch(rows, results, forward)

    threads = workers or cores()
    with one_core_each(), ThreadPoolExecutor(threads, "embed") as pool:
        try:
            yield from in_order(
                pool, rows_of_batches, lambda p, rows: p.submit(whole, rows), lambda _, f: f.result(), 2 * threads
            )
        finally:
            stopped.set()
            stop()


def in_order[Job](
    pool: ThreadPoolExecutor,
    rows_of_batches: Iterable[range],
    submit: Callable[[ThreadPoolExecutor, range], Job],
    finish: Callable[[range, Job], Batch],
    ahead: int,
) -> Iterator[Batch]:
    """The batches in order, some of them ahead in the pool's threads."""
    batches = iter(rows_of_batches)
    pending: deque[tuple[range, Job]] = deque()
    try:
        while True:
            while len(pending) < ahead and (rows := next(batches, None)) is not None:
                pending.append((rows, submit(pool, rows)))
            if not pending:
                return
            yield finish(*pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def one_core_each() -> Iterator[None]:
    """Let threads that start meanwhile compute on one core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def attempt(read: Callable[[int], Tensor], row: int) -> Tensor | str:
    """The pixels of a row, or why there are none."""
    try:
        return read(row)
    except ImageError as error:
        return str(error)


def run_batch(rows: range, results: list[Tensor | str], forward: Callable[[Tensor], Tensor]) -> Batch:
    """One forward pass over what decoding gave for each row."""
    broken = {row: result for row, result in zip(rows, results, strict=True) if isinstance(result, str)}
    pixels = [result for result in results if isinstance(result, Tensor)]
    if not pixels:
        return Batch([], torch.empty(0, 0), broken)
    blank = torch.zeros_like(pixels[0])
    embedding = forward(torch.stack([blank if isinstance(result, str) else result for result in results])).cpu()
    kept = [position for position, row in enumerate(rows) if row not in broken]
    return Batch([rows[position] for position in kept], embedding[kept] if broken else embedding, broken)
