"""From what a network sees back to the image: a map over the input, resized and uncropped to the image's own pixels."""

import torch
from torch import Tensor

from transferkit.images.preprocessing import Preprocessing


def carry_back(heat: Tensor, preprocessing: Preprocessing, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Carry a map over the network's input back through crop and resize, bilinear between the input's pixels.

    Args:
        heat: float (h, w), one value per pixel of the input.
        preprocessing: how the image became the input.
        height: of the image.
        width: of the image.

    Returns:
        float (height, width), 0 where the network saw nothing; and bool (height, width), where it saw something.
    """
    down, across = axes(preprocessing, height, width)
    rows, columns = interpolation(down, heat.shape[0]), interpolation(across, heat.shape[1])
    seen = (rows.sum(1) > 0)[:, None] & (columns.sum(1) > 0)
    return rows.to(heat) @ heat @ columns.to(heat).T, seen.to(heat.device)


def axes(preprocessing: Preprocessing, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return where each row and each column of an image lies in the input, in its pixels: (height,) and (width,)."""
    kept = preprocessing.shortened(torch.empty(3, height, width, device="meta")).shape[1:]
    resized = preprocessing.resized_size(*kept)
    offset = preprocessing.crop_offset(*resized)
    down, across = (
        (torch.arange(side) - (side - part) // 2 + 0.5) * (new / part) - 0.5 - start
        for side, part, new, start in zip((height, width), kept, resized, offset, strict=True)
    )
    return down, across


def interpolation(positions: Tensor, size: int) -> Tensor:
    """Return the weights of linear interpolation: (N, size), rows of zeros for positions outside of the pixels.

    Args:
        positions: (N,), in pixels, whose centers are whole numbers.
        size: number of pixels.
    """
    inside = (positions >= -0.5) & (positions < size - 0.5)
    place = positions.clamp(0, size - 1)[:, None]
    weights = (1 - (place - torch.arange(size)).abs()).clamp(min=0)
    return weights * inside[:, None]
