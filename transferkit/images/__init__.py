"""Pixels: decoding of any image file to RGB, preprocessing to a model's input, augmentation."""

from transferkit.images.decoding import ImageError, decode, read_image

__all__ = ["ImageError", "decode", "read_image"]
