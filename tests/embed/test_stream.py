"""Batches from files to embeddings: in order, whatever the threads, and to the bit."""

import threading

import pytest
import torch
from torch import Tensor

from transferkit.embed.stream import stream, stream_batches
from transferkit.images.decoding import Fault, ImageError


def read(row: int) -> Tensor:
    """An image of its number; every tenth is broken."""
    if row % 10 == 9:
        raise ImageError("truncated", "truncated JPEG")
    return torch.full((3, 2, 2), row, dtype=torch.uint8)


def forward(pixels: Tensor, stopped: threading.Event | None = None) -> Tensor:
    return pixels.flatten(1)[:, :2].float()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("source", [stream, stream_batches])
def test_batches_come_in_order_without_the_broken(source: object, workers: int) -> None:
    batches = list(source([range(4), range(4, 12), range(19, 20), range(20, 21)], read, forward, workers))
    assert [batch.rows for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 10, 11], [], [20]]
    cut = Fault("truncated", "truncated JPEG")
    assert [batch.broken for batch in batches] == [{}, {9: cut}, {19: cut}, {}]
    assert batches[1].embedding[:, 0].tolist() == [4, 5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("source", [stream, stream_batches])
def test_what_goes_wrong_in_a_thread_is_raised_and_ends_them(source: object) -> None:
    def faulty(pixels: Tensor, stopped: threading.Event | None = None) -> Tensor:
        if pixels.max() > 4:
            raise RuntimeError("no memory")
        return forward(pixels)

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no memory"):
        list(source([range(i, i + 1) for i in range(8)], read, faulty, 2))
    assert threading.active_count() == before


def test_threads_are_bounded_ahead_and_end_with_the_consumer() -> None:
    seen: list[int] = []

    def counting(row: int) -> Tensor:
        seen.append(row)
        return read(row)

    cores, threads = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(2)
    batches = stream_batches([range(i, i + 1) for i in range(0, 1000, 10)], counting, forward, 2)
    next(batches)
    assert torch.get_num_threads() == 1
    batches.close()
    assert torch.get_num_threads() == 2 and threading.active_count() == threads
    assert len(seen) <= 5, "no more than two batches a thread wait to be taken"
    torch.set_num_threads(cores)


def test_a_pass_under_way_is_told_that_nobody_waits() -> None:
    begun, heard = threading.Event(), threading.Event()

    def slow(pixels: Tensor, stopped: threading.Event) -> Tensor:
        if pixels.max() > 0:
            begun.set()
            if stopped.wait(20):
                heard.set()
        return forward(pixels)

    batches = stream_batches([range(1), range(1, 2)], read, slow, 2)
    next(batches)
    assert begun.wait(20)
    batches.close()
    assert heard.wait(20)
