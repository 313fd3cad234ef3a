"""Where memory does not suffice for a batch, it is embedded in halves, with the same rows in the same order."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.extractor.examples import resnet18
from transferkit.data.image_table import open_images
from transferkit.embed.in_memory import embed
from transferkit.extractor.forward import Forward
from transferkit.extractor.halving import Halving


class Small:
    """A device with memory for a few rows: it returns each row's sum, and remembers how many came at once."""

    def __init__(self, room: int, error: str = "CUDA out of memory. Tried to allocate 2 GiB") -> None:
        self.room, self.error = room, error
        self.seen: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError(self.error)
        return pixels.flatten(1).float().sum(1, keepdim=True)


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8])
def test_rows_stay_in_order_and_later_batches_begin_small(room: int, caplog: pytest.LogCaptureFixture) -> None:
    device = Small(room)
    forward = Halving(device)
    pixels = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    expected = pixels.flatten(1).float().sum(1, keepdim=True)
    assert torch.equal(forward(pixels), expected)
    tries = len(caplog.messages)
    device.seen.clear()
    assert torch.equal(forward(pixels), expected)
    assert max(device.seen) <= room, "the size is remembered"
    assert len(caplog.messages) == tries == {1: 3, 2: 2, 3: 2, 5: 1, 8: 0}[room], "each halving is said once"


def test_threads_that_fail_together_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    forward = Halving(Small(2))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(forward, [torch.full((4, 1), n) for n in range(16)]))
    assert [result.tolist() for result in found] == [[[float(n)]] * 4 for n in range(16)]
    assert caplog.messages == ["out of memory with 4 images per forward pass; going on with 2"]


@pytest.mark.parametrize("error", ["CUDA out of memory", "mat1 and mat2 shapes cannot be multiplied"])
def test_what_halving_cannot_help_is_raised(error: str) -> None:
    with pytest.raises(RuntimeError, match=error):
        Halving(Small(0, error))(torch.zeros(4, 1))


def test_a_table_is_embedded_to_its_end(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extractor, table = resnet18(), open_images(photo_folder)
    expected = embed(table, extractor, batch_size=8)
    run = Forward.kept

    def small(forward: Forward, backbone: object, inputs: Tensor) -> Tensor:
        if len(inputs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(forward, backbone, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(Forward, "kept", small)
    with caplog.at_level(logging.WARNING):
        found = embed(table, extractor, batch_size=8)
        listed = extractor.embed([str(table.file(row)) for row in range(len(table))], batch_size=8)
    for result in (found.embedding, listed):
        torch.testing.assert_close(result, expected.embedding, rtol=1e-5, atol=1e-5)
    assert found.paths == expected.paths
    assert caplog.messages.count("out of memory with 8 images per forward pass; going on with 4") == 2
