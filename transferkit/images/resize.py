"""Resize and crop as torchvision and transformers do, each in its own rounding."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F_v1
from torchvision.transforms.v2 import functional as F_v2

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Arithmetic = Literal["torchvision", "transformers", "transformers-float"]
Size = tuple[int, int]

# Above this torchvision's float32 resize takes one channel after another, to bound memory.
LARGE_PIXELS = 2**24
MODES = {
    "nearest": InterpolationMode.NEAREST_EXACT,  # as Pillow; torch's own "nearest" is half a pixel off
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def resize(image: Tensor, size: Size, interpolation: Interpolation, arithmetic: Arithmetic) -> Tensor:
    """Resize an image to (height, width).

    Args:
        image: uint8 (3, H, W).
        size: (height, width) of the result.
        interpolation: ``bilinear`` and ``bicubic`` are antialiased.
        arithmetic: whose rounding is followed.

    Returns:
        uint8 (3, *size); with ``transformers-float`` float32, 0..255, not rounded.
    """
    mode = MODES[interpolation]
    if arithmetic == "torchvision":
        parts = torch.split(image, 1 if image[0].numel() > LARGE_PIXELS else 3)
        return torch.cat([F_v1.resize(part, list(size), interpolation=mode, antialias=True) for part in parts])
    pixels = image.float() if arithmetic == "transformers-float" else image
    resized: Tensor = F_v2.resize(pixels, list(size), interpolation=mode, antialias=True)
    return resized


def crop_or_pad(image: Tensor, offset: Size, size: Size, fill: tuple[int, int, int]) -> Tensor:
    """Cut out a rectangle; what of it lies outside of the image gets the color ``fill``.

    Args:
        image: (3, H, W).
        offset: (top, left) of the rectangle, negative where it begins outside.
        size: (height, width) of the rectangle.
        fill: red, green and blue, 0..255.
    """
    (top, left), (height, width) = offset, size
    inside = image[:, max(0, top) : top + height, max(0, left) : left + width]
    if inside.shape[1:] == size:
        return inside.contiguous()  # (3, h, w)
    canvas = torch.tensor(fill, dtype=image.dtype)[:, None, None].repeat(1, *size)
    canvas[:, max(0, -top) :, max(0, -left) :][:, : inside.shape[1], : inside.shape[2]] = inside
    return canvas  # (3, h, w)


def crop_offset(size: Size, crop: Size, arithmetic: Arithmetic) -> Size:
    """Return (top, left) of the center crop of an image of this size; negative where the crop is larger.

    The libraries round apart where pixels are cut off, and alike where they are added.
    """

    def start(side: int, part: int) -> int:
        if part > side:
            return -((part - side) // 2)
        return round((side - part) / 2) if arithmetic == "torchvision" else (side - part) // 2

    return start(size[0], crop[0]), start(size[1], crop[1])


def fitted(height: int, width: int, box: Size, cover: bool) -> Size:
    """Return the size of an image scaled to just cover a box, or to just fit into it, as timm's ResizeKeepRatio."""
    ratios = (height / box[0], width / box[1])
    ratio = min(ratios) if cover else max(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def shorten(image: Tensor, limit: int) -> Tensor:
    """Return the center of an image whose longer side exceeds ``limit`` times the shorter, or the image."""
    height, width = image.shape[-2:]
    longest = max(1, limit) * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[:, top : top + longest, left : left + longest]
