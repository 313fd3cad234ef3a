"""Pillow's picture of any mode to uint8 RGB pixels; deep and transparent ones in NumPy where Pillow is wrong."""

import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from transferkit.images.error import ImageError
from transferkit.images.tiff import WHITE_IS_ZERO, Layout

BAND_PIXELS = 2**22
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class Samples(NamedTuple):
    """Properties of the values in a file that Pillow's mode does not show.

    Attributes:
        bits: bits per value.
        inverted: whether 0 is white and Pillow has not inverted it.
        key: the color of a PNG that stands for transparency, in the file's own depth.
        low: the low bytes of 16-bit colors, of which Pillow keeps the high ones; only if the key needs them.
    """

    bits: int
    inverted: bool
    key: tuple[int, ...] | None
    low: Image.Image | None


def to_rgb(image: ImageFile.ImageFile, data: bytes, layout: Layout | None) -> Tensor:
    """Decode and convert to uint8 (3, H, W), in bands of rows, so that a large picture is in memory only once.

    Args:
        image: as opened by Pillow.
        data: the file that it was opened from.
        layout: of a TIFF.

    Raises:
        ImageError: the values cannot be mapped to 0..255: floats, or integers of unknown range.
    """
    image.load()
    check_range(image)
    samples = samples_of(image, data, layout)
    if samples.bits > 12:
        check_depth(image, data)
    pixels = np.empty((3, image.height, image.width), dtype=np.uint8)  # NumPy transposes in half of PyTorch's time
    lows = bands(samples.low) if samples.low else repeat((0, None))
    for (top, band), (_, low) in zip(bands(image), lows, strict=False):
        pixels[:, top : top + band.height] = rgb_of(band, samples._replace(low=low)).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield first row and pixels of one band of rows after the other."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield top, image if rows >= image.height else image.crop(box)


def check_range(image: Image.Image) -> None:
    """Refuse values of unknown range."""
    if image.mode == "F":
        raise ImageError("unsupported_pixels", "floating-point pixels")
    if image.mode == "I":
        low, high = np.array(image.getextrema())
        if low < 0 or high > 0xFFFF:
            raise ImageError("unsupported_pixels", "32-bit pixels outside 0..65535")


def check_depth(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse 16-bit values of 12 bits or fewer: they would become black, and no file states which value is white.

    Pictures of zeros only are black.
    """
    if image.mode.startswith("I"):  # Pillow has no extrema of a big-endian one
        is_low = 0 < max(int(np.asarray(band).max()) for _, band in bands(image)) < 2**12
    else:
        extrema: Any = image.getextrema()
        colors = extrema[: {"LA": 1, "RGBA": 3}.get(image.mode, len(extrema))]
        highest = max(high for _, high in colors)  # the high byte
        is_low = 0 < highest < 2**4
        if highest == 0 and (low := low_bytes(data)):
            below: Any = low.getextrema()
            is_low = any(high for _, high in below[: len(colors)])
    if is_low:
        raise ImageError("unsupported_pixels", "16-bit pixels below 4096: 12-bit values? scale them to 16 bits")


def samples_of(image: ImageFile.ImageFile, data: bytes, layout: Layout | None) -> Samples:
    """Return the properties of the values in a file."""
    if layout:
        return Samples(layout.bits[0], layout.photometric == WHITE_IS_ZERO and image.mode.startswith("I"), None, None)
    if image.format != "PNG":
        return Samples(16 if image.mode.startswith("I") else 8, False, None, None)
    bits, color = data[24:26]  # after signature, IHDR, width and height (W3C PNG, 11.2.1)
    key = image.info.get("transparency") if color in (0, 2) else None  # grayscale and RGB: one color
    if key is None:
        return Samples(bits, False, None, None)
    mask = 2**bits - 1  # of its 16 bits only the lower ones count (W3C PNG, 11.3.1.1)
    key = tuple(value & mask for value in (key if isinstance(key, tuple) else (key,)))
    return Samples(bits, False, key, low_bytes(data) if bits == 16 and color == 2 else None)


def low_bytes(data: bytes) -> Image.Image | None:
    """Return the low bytes of a picture with 16 bits per color: Pillow reads them if the byte order is swapped."""
    image: ImageFile.ImageFile = Image.open(BytesIO(data), formats=("PNG", "TIFF"))
    tiles = []
    for tile in image.tile:
        mode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        if mode[-4:-1] != ";16" or mode.startswith("LA"):  # Pillow has one byte order only of the latter
            return None
        swapped = mode[:-1] + SWAPPED[mode[-1]]
        tiles.append(tile._replace(args=(swapped, *rest) if rest else swapped))
    image.tile = tiles
    image.load()
    return image


def rgb_of(image: Image.Image, samples: Samples) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) of a decoded picture of any mode but ``F``."""
    if image.mode.startswith("I"):  # 12 or 16 bits per pixel, perhaps in a 32-bit integer
        values: NDArray[Any] = np.array(image)
        shown = 0xFFFF - values if samples.inverted else values
        gray = (shown >> (4 if samples.bits == 12 else 8)).astype(np.uint8)
        return without_key(np.stack([gray] * 3, axis=-1), values[..., None], samples)
    if samples.key:
        values = np.asarray(image).astype(np.uint8)
        values = values if values.ndim == 3 else values[..., None]  # (H, W, 1 or 3)
        rgb = np.array(image.convert("RGB"))
        return without_key(rgb, values, samples)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return np.asarray(opaque)
    return in_place(image if image.mode == "RGB" else image.convert("RGB"))


def in_place(image: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) of an RGB picture where Pillow keeps it, without a copy if it is in one piece.

    Pillow holds the interpreter's lock while it copies, and of a dozen threads that decode, all would wait.
    """
    try:
        # Of each pixel three values and one to spare. Arrow's own to_numpy would import pandas.
        values: NDArray[Any] = np.from_dlpack(pa.array(image).values)
    except ValueError:  # in several pieces, as large ones are
        return np.asarray(image)
    pixels: NDArray[np.uint8] = values.reshape(image.height, image.width, 4)[..., :3]
    return pixels


def without_key(rgb: NDArray[np.uint8], values: NDArray[Any], samples: Samples) -> NDArray[np.uint8]:
    """Paint pixels white that have the color that stands for transparency.

    Args:
        rgb: (H, W, 3), modified in place.
        values: (H, W, 1 or 3) as Pillow decoded them: low depths stretched to 0..255, or the high bytes.
        samples: properties of the values in the file.
    """
    if samples.key is None:
        return rgb
    key = np.array(samples.key)
    if samples.bits < 8:
        key = key * (255 // (2**samples.bits - 1)) if values.max(initial=0) > 1 else key
    if samples.low is None:
        same = (values == key).all(axis=-1)
    else:
        same = ((values == key >> 8) & (np.asarray(samples.low) == key & 0xFF)).all(axis=-1)
    rgb[same] = 255
    return rgb
