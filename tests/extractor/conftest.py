"""Images to embed, and one thread."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A few small images a test: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos() -> list[Tensor]:
    """Decoded images of several sizes, uint8 (3, H, W)."""
    sizes = ((40, 52), (64, 64), (90, 36), (32, 32))
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
