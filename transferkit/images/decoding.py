"""Any image file to RGB pixels, or an ImageError that says why not: the only place that decodes images.

Every mode becomes uint8 RGB: the EXIF orientation is applied, transparency is composed on white, deeper
values are shifted to 8 bits, and of several frames the first is taken. Pillow decodes; its JPEG pixels are
bit-identical to torchvision's, in the same time. What it is known to read wrong is refused (``tiff.py``) or
converted in NumPy (``rgb.py``).
"""

import errno
import os
import stat
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from transferkit.images import tiff
from transferkit.images.declared import declared_size
from transferkit.images.error import Fault, ImageError, Kind
from transferkit.images.extent import is_cut, jpeg_extent, webp_end, with_own_size
from transferkit.images.formats import EXTENSIONS, FORMATS, UNREAD_KINDS, decoders, formats_for, needs_plugin, unread
from transferkit.images.rgb import to_rgb
from transferkit.images.silence import pillow_silenced
from transferkit.runtime.unicode_names import other_form

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "UNREAD_KINDS",
    "Fault",
    "Header",
    "ImageError",
    "decode",
    "decoders",
    "inspect",
    "needs_plugin",
    "read_file",
    "read_image",
]

# Pillow needs up to 4 bytes per pixel and the tensor 3: at this size both stay under 1 GiB together.
MAX_PIXELS = 2**27
MAX_SIDE = 2**16 - 1  # the limit of JPEG; a resize widens a tall picture before it shortens it
# Every scan of a progressive JPEG visits all its pixels; a file of a few kilobytes could cause hours of work.
MAX_JPEG_WORK = 16 * MAX_PIXELS
MAX_FILE_BYTES = 2**29
TOO_MUCH_TEXT = "PNG with more text beside its pixels than is read; remove its metadata"

ORIENTATION_TAG = 0x0112  # Exif 2.3, table 4
FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}  # after the transpose of 5 to 8


class Header(NamedTuple):
    """Header of an image file.

    Attributes:
        format: ``JPEG``, ``PNG``, ...
        mode: Pillow's name, such as ``RGB``, ``CMYK`` or ``P``; ``RGB;16`` where the file has more bits than are kept.
        size: (width, height): upright for TIFF, otherwise as stored.
        frames: number of pictures in the file.
        orientation: EXIF orientation, 1 is upright; one that a PNG stores after its pixels is not seen.
    """

    format: str
    mode: str
    size: tuple[int, int]
    frames: int
    orientation: int


def read_image(path: str | Path) -> Tensor:
    """Read an image file as RGB pixels.

    Args:
        path: a regular file.

    Returns:
        uint8 (3, H, W), upright.

    Raises:
        ImageError: the file cannot be opened (the system's reason) or ``decode`` refuses it.
    """
    return decode(read_file(path))


def read_file(path: str | Path) -> bytes:
    """Read a regular file of at most ``MAX_FILE_BYTES``.

    Raises:
        ImageError: the file cannot be opened (the system's reason), is not a regular file, or is too large.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe might never return
            raise ImageError("not_a_file", "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            detail = f"file of {status.st_size} bytes, more than the limit of {MAX_FILE_BYTES}"
            raise ImageError("too_large", detail)
        return Path(path).read_bytes()
    except OSError as error:
        fault = Fault.of(error)
        more = other_form(path) if fault.kind == "missing" else ""
        raise ImageError(fault.kind, f"{fault.detail}{more}") from error
    except ValueError as error:  # a null byte in the name
        raise ImageError("not_a_file", "impossible file name") from error


def inspect(data: bytes) -> Header:
    """Read the header of an image file without decoding its pixels.

    Raises:
        ImageError: the file is not an image, or its header is broken.
    """
    image, _ = open_image(data)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    deep = ";16" not in image.mode and any(";16" in str(tile.args) for tile in image.tile)
    mode, size, orientation = f"{image.mode};16" if deep else image.mode, image.size, orientation_of(image)
    try:
        with pillow_silenced():
            frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a broken index of frames; whether the first is complete shows when it is decoded
        frames = 1
    return Header(name, mode, size, frames, orientation)


def decode(data: bytes) -> Tensor:
    """Decode the bytes of an image file to RGB pixels.

    Only complete pictures are accepted. A file that ends early is refused, and so is a PNG with a wrong checksum.
    JPEG, GIF and WebP have no checksums: a flipped bit may decode to other pixels, and a truncated JPEG with a new
    end marker to gray ones. Bytes after the first picture (of a multi-picture JPEG, or a phone's video) are ignored.

    Args:
        data: the whole file.

    Returns:
        uint8 (3, H, W), upright.

    Raises:
        ImageError: the bytes cannot be decoded; no other exception leaves this function.
    """
    if not data:
        raise ImageError("empty", "empty file")
    image, layout = open_image(data)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    extent = jpeg_extent(data) if name == "JPEG" else None
    if extent and extent.unread:
        raise unread(extent.unread)
    check_work(image.size, extent.scans if extent else 1)
    try:
        if name == "TIFF" and is_cut(data, name, image):  # before decoding, which drops its strips
            raise ImageError("truncated", "truncated TIFF")
        if name == "TIFF":
            with pillow_silenced():
                image.load()
        pixels, orientation = to_rgb(image, data, layout), orientation_of(image)
        if name != "TIFF" and is_cut(data, name, image):
            raise ImageError("truncated", f"truncated {name}")
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("system", os.strerror(errno.ENOMEM).lower()) from error
    except Exception as error:  # decoders raise exceptions of any type on broken data
        if has_too_much_text(error):
            raise ImageError("too_large", TOO_MUCH_TEXT) from error
        early = any(words in str(error).lower() for words in ("truncated", "end of file", "not enough"))
        early = early or (name != "TIFF" and is_cut(data, name, image))
        kind: Kind = "truncated" if early else "corrupt"
        raise ImageError(kind, f"{kind} {name}") from error
    del image  # free Pillow's copy before a large picture is turned
    return upright(pixels, orientation)


def open_image(data: bytes) -> tuple[ImageFile.ImageFile, tiff.Layout | None]:
    """Read the header, and the layout of a TIFF; pixels are not decoded yet."""
    formats, layout = formats_for(data), None
    if needs_plugin(data) and (size := declared_size(data)):
        check_work(size, 1)
    try:
        with pillow_silenced():
            layout = tiff.layout_of(data)
            if layout:
                tiff.check(layout)
            return Image.open(BytesIO(with_own_size(data)), formats=formats), layout
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"more pixels than the limit of {MAX_PIXELS}") from error
    except Exception as error:
        if has_too_much_text(error):
            raise ImageError("too_large", TOO_MUCH_TEXT) from error
        if data[8:12] == b"WEBP" and max(webp_end(data), int.from_bytes(data[4:8], "little") + 8) > len(data):
            raise ImageError("truncated", "truncated WEBP") from error  # opening it needs the whole file
        if data[:3] == b"\xff\xd8\xff" and (name := jpeg_extent(data).unread):
            raise unread(name) from error
        if not isinstance(error, UnidentifiedImageError):
            raise ImageError("corrupt", "broken image header") from error
        if layout:
            raise tiff.unread(layout) from error
        raise ImageError("not_an_image", "not an image, or its header is broken") from error


def has_too_much_text(error: Exception) -> bool:
    """Return whether Pillow's limit on the inflated text of a PNG was exceeded."""
    return "MAX_TEXT" in str(error)


def check_work(size: tuple[int, int], scans: int) -> None:
    """Refuse a picture that would take too much memory or time."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError("too_large", f"{width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    if max(size) > MAX_SIDE:
        raise ImageError("too_large", f"{width} x {height} pixels, more than the limit of {MAX_SIDE} on a side")
    if width * height * scans > MAX_JPEG_WORK:  # 0xFFDA cannot occur inside a scan (ITU-T T.81, B.1.1.5)
        raise ImageError("too_large", f"JPEG of {scans} scans, too many for its size")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a decoded image; a PNG may store it after its pixels.

    The decoder of JPEG XL applies it itself, except to a JPEG that is packed in it.
    """
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1
    try:
        with pillow_silenced():
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (1 to 8; anything else counts as upright)."""
    if 5 <= orientation <= 8:
        pixels = pixels.transpose(-1, -2)
    return pixels.flip(FLIPS[orientation]).contiguous() if orientation in FLIPS else pixels.contiguous()
