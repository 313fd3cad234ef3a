"""Images to embed."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def photos() -> list[Tensor]:
    """Decoded images of several sizes, uint8 (3, H, W)."""
    sizes = ((40, 52), (64, 64), (90, 36), (32, 32))
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
