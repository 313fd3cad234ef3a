"""Images to embeddings, batch by batch, on all cores.

Decoding, resizing and the forward pass release the interpreter's lock, so threads overlap them without copying
pixels between processes. On a GPU all cores decode, and transfers in both directions overlap with the network. On a
CPU each thread takes whole batches from files to embeddings on one core: threads
that share a batch wait for each other at every layer, even longer while others decode. It also makes an embedding
independent of the number of cores.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from transferkit.data.columns import take
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import remember
from transferkit.embed.transfer import Transfer
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.extractor.halving import Halving
from transferkit.images.error import Fault, ImageError
from transferkit.images.silence import pillow_silenced
from transferkit.runtime.cores import cores
from transferkit.runtime.progress import progress_bar

Job = TypeVar("Job")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """The result of one batch of rows.

    Attributes:
        rows: the rows that could be read, ascending.
        embedding: float32 (len(rows), D) on the CPU.
        broken: row -> reason, for those that could not.
    """

    rows: list[int]
    embedding: Tensor
    broken: dict[int, Fault]


class View(NamedTuple):
    """A random view of every image, ``transform(image, row)``, determined by its name and the row."""

    name: str
    transform: Callable[[Tensor, int], Tensor]


def stream_table(
    extractor: Extractor,
    table: ImageTable,
    batches: list[range],
    forward: Forward | None = None,
    view: View | None = None,
    workers: int | None = None,
    show: bool = True,
) -> Generator[Batch, None, None]:
    """Stream the batches of a table through an extractor, and remember which images could be decoded.

    Args:
        extractor: the extractor.
        table: images in path order.
        batches: rows of each batch.
        forward: what is kept of each image; by default the extractor's embedding in float32.
        view: a random view of the images instead of their preprocessing.
        workers: threads; by default one per core.
        show: whether to show a progress bar.

    Raises:
        UserError: an embedding holds NaN or infinity.
    """
    forward = forward or extractor.forward()
    one_at_a_time = Lock()  # augmentation draws from the global generator

    def read(row: int) -> Tensor:
        image = table.read(row)
        if view is None:
            return extractor.preprocessing.resize_crop(image, exact=forward.precision == "32")
        with one_at_a_time:
            return view.transform(image, row)

    source = stream_batches if forward.device.type == "cpu" else partial(stream, device=forward.device)
    forward.expect(batches, len(table))
    total = sum(map(len, batches))
    bar = progress_bar(f"embedding with {extractor.name}", total) if show else nullcontext(lambda steps: None)
    decoded: dict[str, Fault | None] = {}
    try:
        with bar as advance, closing(source(batches, read, forward, workers)) as results:
            for batch in results:
                decoded |= {table.paths[row]: None for row in batch.rows}
                decoded |= {table.paths[row]: fault for row, fault in batch.broken.items()}
                advance(len(batch.rows) + len(batch.broken))
                check_finite(batch, table.paths)
                yield batch
    finally:  # also if the caller stops early or the user interrupts
        remember(table, decoded)


def check_finite(batch: Batch, paths: Sequence[str]) -> None:
    """Refuse embeddings that no later step can use: finite weights may still overflow on the way.

    Args:
        batch: of some rows.
        paths: image of every row.

    Raises:
        UserError: naming the first image whose embedding holds NaN or infinity.
    """
    if batch.embedding.sum().isfinite():  # one pass; a sum of finite values may overflow, too
        return
    bad = (~batch.embedding.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"the embedding of {paths[batch.rows[bad[0]]]!r} holds NaN or infinity; "
            "check the extractor and its weights, or compute in `precision=32`"
        )


def usual_batch_size(device: torch.device) -> int:
    """Return the images per forward pass: 128 on a GPU; 16 on a CPU, where each core takes batches of its own.

    Larger batches do not fit a core's cache, and fewer batches leave cores idle at the end.
    """
    return 16 if device.type == "cpu" else 128


def batch_ranges(rows: int, batch_size: int) -> list[range]:
    """Cut rows into batches at fixed places."""
    return [range(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


def make_table(table: ImageTable, rows: list[int], embedding: Tensor, metadata: Mapping[str, Any]) -> Embeddings:
    """Make a table of the embeddings (N, *shape) of some rows, flattened to (N, D)."""
    paths, labels, splits, groups = take(table, rows)
    return Embeddings(embedding.flatten(1), paths, labels, splits, metadata, groups, table.kind)


def stream(
    rows_of_batches: Iterable[range],
    read: Callable[[int], Tensor],
    forward: Callable[[Tensor], Tensor],
    workers: int | None = None,
    ahead: int = 3,
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """Embed batches of rows in order: threads decode ahead while the network runs, and a batch is taken one late.

    If the device has no memory for a batch, it is embedded in halves, and one line says so.

    An unreadable row takes part in the forward pass as a black image and is left out of the result, so that the last
    bits of the other rows do not depend on it.

    Args:
        rows_of_batches: the rows of each batch.
        read: row -> preprocessed uint8 pixels (3, h, w); may raise ImageError.
        forward: uint8 (B, 3, h, w) -> float32 (B, D).
        workers: decoding threads; by default one per core.
        ahead: number of batches that are decoded ahead of the network.
        device: where the network is.
    """
    transfer, forward, running = Transfer(device), Halving(forward), None
    beside = nullcontext() if device.type == "cpu" else one_core_each()  # a network on the CPU needs all cores itself
    # Silenced from here on, reading an image need not change the process's filters and loggers.
    with pillow_silenced(), beside, ThreadPoolExecutor(workers or cores(), "decode") as pool:
        try:
            for rows, futures in ahead_of(
                rows_of_batches, lambda rows: [pool.submit(attempt, read, row) for row in rows], ahead
            ):
                begun = begin_batch(rows, [future.result() for future in futures], forward, transfer)
                if running:
                    yield running()
                running = begun
            if running:
                yield running()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def stream_batches(
    rows_of_batches: Iterable[range],
    read: Callable[[int], Tensor],
    forward: Callable[[Tensor, Event], Tensor],
    workers: int | None = None,
) -> Generator[Batch, None, None]:
    """Embed batches of rows in order: each thread reads and embeds whole batches on one core.

    Args:
        rows_of_batches: the rows of each batch.
        read: as for :func:`stream`; called from several threads at once.
        forward: as for :func:`stream`, called from several threads at once; its second argument is set when the pass
            is cancelled.
        workers: threads; by default one per core.
    """
    stopped, forward = Event(), Halving(forward)

    def whole(rows: range) -> Batch:
        return run_batch(rows, [attempt(read, row, stopped) for row in rows], lambda pixels: forward(pixels, stopped))

    threads = workers or cores()
    with pillow_silenced(), one_core_each(), ThreadPoolExecutor(threads, "embed") as pool:
        try:
            for _, future in ahead_of(rows_of_batches, lambda rows: pool.submit(whole, rows), 2 * threads):
                yield future.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def ahead_of(
    rows_of_batches: Iterable[range], submit: Callable[[range], Job], ahead: int
) -> Iterator[tuple[range, Job]]:
    """Yield batches with their jobs, in order; jobs are submitted some batches ahead."""
    batches = iter(rows_of_batches)
    pending: deque[tuple[range, Job]] = deque()
    while True:
        while len(pending) < ahead and (rows := next(batches, None)) is not None:
            pending.append((rows, submit(rows)))
        if not pending:
            return
        yield pending.popleft()


@contextmanager
def one_core_each() -> Iterator[None]:
    """Let threads that start inside the block compute on one core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def attempt(read: Callable[[int], Tensor], row: int, stopped: Event | None = None) -> Tensor | Fault:
    """Return the pixels of a row, or the reason why it cannot be read."""
    if stopped and stopped.is_set():
        return Fault("cancelled", "cancelled")
    try:
        return read(row)
    except ImageError as error:
        return error.fault


def run_batch(rows: range, results: list[Tensor | Fault], forward: Callable[[Tensor], Tensor]) -> Batch:
    """Run one forward pass over the pixels, or the reason, of each row, on a CPU."""
    return begin_batch(rows, results, forward, Transfer(CPU))()


def begin_batch(
    rows: range, results: list[Tensor | Fault], forward: Callable[[Tensor], Tensor], transfer: Transfer
) -> Callable[[], Batch]:
    """Begin a forward pass over the pixels, or the reason, of each row; return the function that waits for its end."""
    broken = {row: result for row, result in zip(rows, results, strict=True) if isinstance(result, Fault)}
    pixels = [result for result in results if isinstance(result, Tensor)]
    if not pixels:
        return lambda: Batch([], torch.empty(0, 0), broken)
    blank = torch.zeros_like(pixels[0])
    images = [blank if isinstance(result, Fault) else result for result in results]
    take_result = transfer.fetch(forward(transfer.send(images)))

    def finish() -> Batch:
        embedding = take_result()
        kept = [position for position, row in enumerate(rows) if row not in broken]
        return Batch([rows[position] for position in kept], embedding[kept] if broken else embedding, broken)

    return finish
