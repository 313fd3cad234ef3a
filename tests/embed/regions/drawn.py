"""Drawn images and a backbone that sees their mean colors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transferkit.backbones import Backbone
from transferkit.data.image_table import ImageTable, open_images
from transferkit.images.preprocessing import Preprocessing

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "arithmetic": "torchvision"}


class Colors(Backbone):
    """Features are mean colors of patches of 4 x 4 pixels, as a map or as tokens; some take one size only."""

    def __init__(self, tokens: bool = False, only: int | None = None) -> None:
        super().__init__()
        self.name, self.model, self.pooling, self.poolings = "colors", torch.nn.Conv2d(3, 3, 1), "avg", ("avg",)
        self.stages, self.embed_dim, self.tokens, self.only = {"stem": []}, 3, tokens, only
        self.preprocessing = Preprocessing(resize=64, crop=(56, 56), **RAW)

    def forward_features(self, pixels: Tensor) -> Tensor:
        if self.only and tuple(pixels.shape[2:]) != (self.only, self.only):
            raise ValueError("another size")
        cells = torch.nn.functional.avg_pool2d(pixels, 4)
        return cells.flatten(2).transpose(1, 2) if self.tokens else cells

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))

    def spec(self) -> dict[str, object]:
        return {}


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right and green downward: the mean color of a box tells its center."""
    across, down = np.meshgrid(np.arange(width) * 255 / width, np.arange(height) * 255 / height)
    return np.stack([across, down, np.full_like(across, 90)], -1).round().astype(np.uint8)


def folder(tmp_path: Path, **pictures: np.ndarray) -> ImageTable:
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return open_images(tmp_path)
