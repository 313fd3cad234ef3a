"""Images to embeddings, batch by batch: threads decode ahead while the network runs.

Decoding, resizing and the forward pass all release the interpreter's lock, so threads
overlap them without copying pixels between processes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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
    """Embed batches of rows in order.

    A row that cannot be read takes part in the forward pass as a black image and is left out of the
    result, so that the other rows' last bits do not depend on it.

    Args:
        rows_of_batches: the rows of each batch.
        read: row -> preprocessed uint8 pixels (3, h, w); may raise ImageError.
        forward: uint8 (B, 3, h, w) -> float32 (B, D).
        workers: decoding threads; by default one a core, 8 at most.
        ahead: batches being decoded while one is in the network.
    """

    def attempt(row: int) -> Tensor | str:
        try:
            return read(row)
        except ImageError as error:
            return str(error)

    batches = iter(rows_of_batches)
    pending: deque[tuple[range, list[Future[Tensor | str]]]] = deque()
    with ThreadPoolExecutor(workers or min(8, cores()), "decode") as pool:
        try:
            while True:
                while len(pending) < ahead and (rows := next(batches, None)) is not None:
                    pending.append((rows, [pool.submit(attempt, row) for row in rows]))
                if not pending:
                    return
                rows, futures = pending.popleft()
                yield run_batch(rows, [future.result() for future in futures], forward)
        finally:
            pool.shutdown(cancel_futures=True)


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
