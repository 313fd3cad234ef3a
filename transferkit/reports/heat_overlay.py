"""A heat map over its image: colors where a network looked, gray where it saw nothing."""

import matplotlib
import torch
from torch import Tensor

COLORS = "inferno"  # its lightness rises with the value, so that it can be read without colors
OPACITY = 0.75
"""Of the color where the heat is 1; where it is 0, the image stays as it is."""
UNSEEN = 0.35
"""Brightness of what the network did not see."""


def overlay(image: Tensor, heat: Tensor, seen: Tensor) -> Tensor:
    """Return an image with a heat map over it.

    Args:
        image: uint8 RGB (3, H, W).
        heat: float (H, W) in [0, 1].
        seen: bool (H, W).

    Returns:
        uint8 RGB (3, H, W).
    """
    table = torch.from_numpy(matplotlib.colormaps[COLORS].resampled(256)(range(256))[:, :3] * 255).float()  # (256, 3)
    colors = table[(heat.clamp(0, 1) * 255).round().long()].movedim(-1, 0)  # (3, H, W)
    opacity = OPACITY * heat
    mixed = image * (1 - opacity) + colors * opacity
    gray = image.float().mean(0, keepdim=True).expand(3, -1, -1) * UNSEEN
    return torch.where(seen, mixed, gray).round().to(torch.uint8)
