"""Any image file to RGB pixels, or one short reason why not: the only place that decodes images.

Every mode becomes uint8 RGB: the EXIF orientation is applied, transparency is composed on white, 16-bit
values are shifted to 8, and of several frames the first is taken. Pillow decodes; its JPEG pixels are
torchvision's to the bit, in the same time.
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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

# Formats with a signature, decoded inside this process: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Pillow holds up to 4 bytes a pixel and our tensor 3: at this size both stay under 1 GiB together.
MAX_PIXELS = 2**27
MAX_SIDE = 2**16 - 1  # JPEG's own; a resize widens a tall picture before it shortens it
# Every scan of a progressive JPEG visits all its pixels; a few kilobytes could ask for hours of work.
MAX_JPEG_WORK = 16 * MAX_PIXELS
MAX_FILE_BYTES = 2**29
BAND_PIXELS = 2**22

ORIENTATION_TAG = 0x0112  # Exif 2.3, table 4
_FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}  # after the transpose of 5 to 8

# What Pillow logs of a broken file is said by the ImageError, once.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# warnings.catch_warnings changes the whole process, so threads take turns; a fork never inherits the turn.
_turn = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


class ImageError(Exception):
    """An image that cannot be used; the message is one short reason, such as ``truncated JPEG``."""


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
    image = _open(data)
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
    bit may decode as other pixels, and a JPEG cut short but given a new end marker as grey ones. Of a
    multi-picture JPEG (MPO) only the first picture is looked at.

    Args:
        data: the whole file.

    Returns:
        uint8 (3, H, W), upright.

    Raises:
        ImageError: one short reason; no other exception leaves this function.
    """
    if not data:
        raise ImageError("empty file")
    image = _open(data)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    _check_work(image.size, data.count(b"\xff\xda") if name == "JPEG" else 1)
    try:
        if _ends_early(data, name, image):
            raise ImageError(f"truncated {name}")
        if name == "TIFF":
            with _metadata_warnings_settled():
                image.load()
        pixels, orientation = _pixels(image), _orientation(image)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(os.strerror(errno.ENOMEM).lower()) from error
    except Exception as error:  # decoders raise whatever they like on broken data
        early = any(words in str(error).lower() for words in ("truncated", "end of file", "not enough"))
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


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header; no pixel is decoded yet."""
    try:
        with _metadata_warnings_settled():
            return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"more pixels than the limit of {MAX_PIXELS}") from error
    except Exception as error:
        if data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
            raise ImageError("truncated WEBP") from error  # opening it takes the whole file
        unknown = isinstance(error, UnidentifiedImageError)
        raise ImageError("not an image, or its header is broken" if unknown else "broken image header") from error


def _check_work(size: tuple[int, int], scans: int) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{width} x {height} pixels, more than the limit of {MAX_SIDE} on a side")
    if width * height * scans > MAX_JPEG_WORK:  # 0xFFDA cannot occur inside a scan (ITU-T T.81, B.1.1.5)
        raise ImageError(f"JPEG of {scans} scans, too many for its size")


def _ends_early(data: bytes, format: str, image: ImageFile.ImageFile) -> bool:
    """Whether something is missing in a way that the format's decoder does not notice."""
    match format:
        case "JPEG":  # Huffman coding spends a bit or more on every 8 x 8 block (ITU-T T.81, annexes F and G)
            width, height = image.size
            return 8 * len(data) < -(-width // 8) * -(-height // 8)
        case "TIFF":
            return not _is_covered(image)
        case "PNG":  # the last chunk, empty, with its checksum
            return b"IEND\xae\x42\x60\x82" not in data
        case "BMP":
            return int.from_bytes(data[2:6], "little") > len(data)
        case "JPEG2000":  # end of codestream: no such pair of bytes in packet data (ISO 15444-1, B.10.1)
            return b"\xff\xd9" not in data.partition(b"\xff\x93")[2]
        case "GIF":
            return not _gif_has_trailer(data)
        case _:
            return False


def _is_covered(image: ImageFile.ImageFile) -> bool:
    """Whether the strips or tiles of an image add up to it; Pillow leaves black what they lack."""
    boxes = {tile.extents or (0, 0, *image.size) for tile in image.tile}
    width, height = image.size
    return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) >= width * height


def _gif_has_trailer(data: bytes) -> bool:
    """Walk the blocks of a GIF (GIF89a, appendix B) to its trailer."""
    at = 13 + _colour_table_bytes(data[10])
    while data[at : at + 1] != b";":
        if at + 10 > len(data):
            return False
        # a frame has a descriptor, colours and a code size before its sub-blocks, an extension two bytes
        at += 11 + _colour_table_bytes(data[at + 9]) if data[at] == 0x2C else 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return True


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0


def _pixels(image: Image.Image) -> Tensor:
    """Decode and convert to uint8 (3, H, W), in bands of rows, so that a large picture is held but once."""
    image.load()
    if image.mode == "F":
        raise ImageError("floating-point pixels")
    if image.mode == "I":
        low, high = np.array(image.getextrema())
        if low < 0 or high > 0xFFFF:
            raise ImageError("32-bit pixels outside 0..65535")
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    pixels = np.empty((3, height, width), dtype=np.uint8)  # NumPy transposes in half of PyTorch's time
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image if rows >= height else image.crop((0, top, width, bottom))
        pixels[:, top:bottom] = _rgb(band).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of a decoded Pillow image of any mode but ``F``."""
    if image.mode.startswith("I"):  # 16 bits a pixel, or as many in a 32-bit integer
        values: NDArray[Any] = np.array(image)
        grey = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return np.stack([grey] * 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return np.asarray(opaque)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image; asked for after loading, since PNG may end with it."""
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
