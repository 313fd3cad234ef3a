"""What pixels say about a picture: how bright, how sharp, how much there is to see. Pure functions."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

SIDE = 256
"""Pixels of the longer side at which sharpness is measured: larger images are scaled down, smaller ones stay."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


class PictureStats(NamedTuple):
    """Measures of one picture.

    Attributes:
        high: brightness that 95% of the pixels do not exceed, in [0, 1]; low for a dark picture.
        low: brightness that 95% of the pixels reach, in [0, 1]; high for a bright picture.
        sharpness: variance of the Laplacian of the brightness, whose range is 0 to 255.
        entropy: of the histogram of brightness, in bits, 0 to 8.
        aspect: longer by shorter side, from 1.
    """

    high: float
    low: float
    sharpness: float
    entropy: float
    aspect: float


def picture_stats(pixels: Tensor) -> PictureStats:
    """Measure a picture.

    Args:
        pixels: uint8 `(3, H, W)`.
    """
    height, width = pixels.shape[1:]
    gray = scaled(pixels)  # (h, w)
    flat = gray.flatten()
    low, high = torch.quantile(flat, torch.tensor([0.05, 0.95])).tolist()
    share = flat.round().long().bincount(minlength=256).double() / len(flat)
    entropy = -(share[share > 0] * share[share > 0].log2()).sum()
    aspect = max(height, width) / min(height, width)
    return PictureStats(high / 255, low / 255, laplacian_variance(gray), float(entropy), aspect)


def scaled(pixels: Tensor) -> Tensor:
    """Return the brightness `(h, w)` float32, 0 to 255, of at most 256 pixels a side."""
    height, width = pixels.shape[1:]
    if max(height, width) > SIDE:
        factor = SIDE / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        pixels = interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return (pixels.float() * torch.tensor(LUMA)[:, None, None]).sum(0)


def laplacian_variance(gray: Tensor) -> float:
    """Return the variance of the Laplacian of `(h, w)`; 0 for a picture without an inner pixel."""
    if min(gray.shape) < 3:
        return 0.0
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return float(conv2d(gray[None, None], kernel[None, None]).var(correction=0))
