"""Any image file to RGB pixels, or one short reason why not: the only place that decodes images.

Every mode becomes uint8 RGB: the EXIF orientation is applied, transparency is composed on white, deeper
values are shifted to 8 bits, and of several frames the first is taken. Pillow decodes; its JPEG pixels are
torchvision's to the bit, in the same time. What it is known to read wrong is refused by name (``tiff.py``) or
read by hand here.
"""

import errno
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from transferkit.images import tiff
from transferkit.images.declared import declared_size
from transferkit.images.error import ImageError
from transferkit.images.extent import is_cut, jpeg_extent
from transferkit.images.formats import EXTENSIONS, FORMATS, UNREAD_KINDS, decoders, formats_for, needs_plugin
from transferkit.images.rgb import to_rgb

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "UNREAD_KINDS",
    "Header",
    "ImageError",
    "decode",
    "decoders",
    "inspect",
    "needs_plugin",
    "read_file",
    "read_image",
]

# Pillow holds up to 4 bytes a pixel and our tensor 3: at this size both stay under 1 GiB together.
MAX_PIXELS = 2**27
MAX_SIDE = 2**16 - 1  # JPEG's own; a resize widens a tall picture before it shortens it
# Every scan of a progressive JPEG visits all its pixels; a few kilobytes could ask for hours of work.
MAX_JPEG_WORK = 16 * MAX_PIXELS
MAX_FILE_BYTES = 2**29

ORIENTATION_TAG = 0x0112  # Exif 2.3, table 4
_FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}  # after the transpose of 5 to 8

# What Pillow logs of a broken file is said by the ImageError, once.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# warnings.catch_warnings changes the whole process, so threads take turns; a fork never inherits the turn.
_turn = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


class Header(NamedTuple):
    """What the header of an image says.

    Attributes:
        format: ``JPEG``, ``PNG``, ...
        mode: Pillow's name, such as ``RGB``, ``CMYK`` or ``P``; ``RGB;16`` for more bits than are kept.
        size: (width, height): upright in a TIFF, else as stored.
        frames: pictures in the file.
        orientation: of EXIF, 1 is upright; one that a PNG brings after its pixels is not seen.
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
        ImageError: the file cannot be opened (the system's reason) or is no image that ``decode`` accepts.
    """
    return decode(read_file(path))


def read_file(path: str | Path) -> bytes:
    """Read a regular file of at most ``MAX_FILE_BYTES``.

    Raises:
        ImageError: the system's reason why not, or the limit.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise ImageError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"file of {status.st_size} bytes, more than the limit of {MAX_FILE_BYTES}")
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a null byte in the name
        raise ImageError("impossible file name") from error


def inspect(data: bytes) -> Header:
    """Read the header of an image file; no pixel is decoded.

    Raises:
        ImageError: it is not an image, or its header is broken.
    """
    image, _ = _open(data)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    deep = ";16" not in image.mode and any(";16" in str(tile.args) for tile in image.tile)
    mode, size, orientation = f"{image.mode};16" if deep else image.mode, image.size, _orientation(image)
    try:
        with _metadata_warnings_settled():
            frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a broken index of frames; the first is whole, or decoding says otherwise
        frames = 1
    return Header(name, mode, size, frames, orientation)


def decode(data: bytes) -> Tensor:
    """Decode the bytes of an image file to RGB pixels.

    Only complete pictures pass: a file that ends early is refused, in PNG every checksum must hold, and
    other formats are held to what their decoders notice: JPEG, GIF and WebP carry no checksum, so a flipped
    bit may decode as other pixels, and a JPEG cut short but given a new end marker as gray ones. What lies behind
    the first picture (of a multi-picture JPEG, or a phone's video) is not looked at.

    Args:
        data: the whole file.

    Returns:
        uint8 (3, H, W), upright.

    Raises:
        ImageError: one short reason; no other exception leaves this function.
    """
    if not data:
        raise ImageError("empty file")
    image, layout = _open(data)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    extent = jpeg_extent(data) if name == "JPEG" else None
    if extent and extent.unread:
        raise ImageError(f"{extent.unread} is not read; convert it to PNG or JPEG")
    _check_work(image.size, extent.scans if extent else 1)
    try:
        if name == "TIFF" and is_cut(data, name, image):  # once decoded, it has forgotten its strips
            raise ImageError("truncated TIFF")
        if name == "TIFF":
            with _metadata_warnings_settled():
                image.load()
        pixels, orientation = to_rgb(image, data, layout), _orientation(image)
        if name != "TIFF" and is_cut(data, name, image):
            raise ImageError(f"truncated {name}")
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(os.strerror(errno.ENOMEM).lower()) from error
    except Exception as error:  # decoders raise whatever they like on broken data
        if _has_too_much_text(error):
            raise ImageError("PNG with more text beside its pixels than is read; remove its metadata") from error
        early = any(words in str(error).lower() for words in ("truncated", "end of file", "not enough"))
        early = early or (name != "TIFF" and is_cut(data, name, image))
        raise ImageError(f"{'truncated' if early else 'corrupt'} {name}") from error
    del image  # a large picture is turned without Pillow's copy in memory
    return _upright(pixels, orientation)


@contextmanager
def _metadata_warnings_settled() -> Iterator[None]:
    """What Pillow warns of is decided here: ``MAX_PIXELS`` says what is too large, and broken metadata (EXIF,
    multi-picture index, animation) costs a picture nothing but its orientation.
    """
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes) -> tuple[ImageFile.ImageFile, tiff.Layout | None]:
    """Read the header, and that of a TIFF by itself; no pixel is decoded yet."""
    formats, layout = formats_for(data), None
    if needs_plugin(data) and (size := declared_size(data)):
        _check_work(size, 1)
    try:
        with _metadata_warnings_settled():
            layout = tiff.layout_of(data)
            if layout:
                tiff.check(layout)
            return Image.open(BytesIO(data), formats=formats), layout
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"more pixels than the limit of {MAX_PIXELS}") from error
    except Exception as error:
        if _has_too_much_text(error):
            raise ImageError("PNG with more text beside its pixels than is read; remove its metadata") from error
        if data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
            raise ImageError("truncated WEBP") from error  # opening it takes the whole file
        if data[:3] == b"\xff\xd8\xff" and (unread := jpeg_extent(data).unread):
            raise ImageError(f"{unread} is not read; convert it to PNG or JPEG") from error
        unknown = isinstance(error, UnidentifiedImageError)
        if layout and unknown:
            raise ImageError(f"TIFF layout is not read: {layout}") from error
        raise ImageError("not an image, or its header is broken" if unknown else "broken image header") from error


def _has_too_much_text(error: Exception) -> bool:
    """Whether Pillow's limit on what a PNG's text may be inflated to was met."""
    return "MAX_TEXT" in str(error)


def _check_work(size: tuple[int, int], scans: int) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{width} x {height} pixels, more than the limit of {MAX_SIDE} on a side")
    if width * height * scans > MAX_JPEG_WORK:  # 0xFFDA cannot occur inside a scan (ITU-T T.81, B.1.1.5)
        raise ImageError(f"JPEG of {scans} scans, too many for its size")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image; asked for after loading, since PNG may end with it.

    JPEG XL has turned its own pixels by then, and only a JPEG that is packed in it has not.
    """
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1
    try:
        with _metadata_warnings_settled():
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (1 to 8; anything else counts as upright)."""
    if 5 <= orientation <= 8:
        pixels = pixels.transpose(-1, -2)
    return pixels.flip(_FLIPS[orientation]).contiguous() if orientation in _FLIPS else pixels.contiguous()
