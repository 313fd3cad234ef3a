"""A number per channel as a tensor, such as the mean that is subtracted from pixels."""

from functools import cache

import torch
from torch import Tensor


def channel_values(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return float32 (3, 1, 1) on a device, whatever torch's default dtype is at the moment.

    On a GPU they are made once: to take them from the CPU, the GPU would stop after each batch.
    """
    return (make if device.type == "cpu" else make_once)(values, device)


def make(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return a new tensor."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


@cache
def make_once(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return the one tensor of these values, which training may use, too."""
    with torch.inference_mode(False):
        return make(values, device)
