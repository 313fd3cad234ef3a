"""Pixels go to the network and results come back; tests/gpu/test_embed.py does the same on a GPU."""

import torch

from transferkit.embed.transfer import Transfer


def test_on_a_cpu_nothing_waits() -> None:
    transfer = Transfer(torch.device("cpu"))
    images = [torch.full((3, 2, 2), n, dtype=torch.uint8) for n in range(4)]
    pixels = transfer.send(images)
    assert pixels.shape == (4, 3, 2, 2) and torch.equal(pixels, torch.stack(images))
    result = pixels.float().mean((1, 2, 3))
    assert torch.equal(transfer.fetch(result)(), torch.arange(4.0))
