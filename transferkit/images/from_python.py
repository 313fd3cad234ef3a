"""An image in any form that Python has, to the pixels that the decoder gives of its file.

Paths, bytes and open files are decoded. Arrays and tensors are pixels already: gray becomes RGB, transparency is
composed on white, 16-bit values are shifted to 8 bits, as in a file. Floats are pixels of 0..1, as ``ToTensor``,
Matplotlib and scikit-image have them; others are refused, since nothing tells how they were normalized.
"""

import os
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from transferkit.images.decoding import decode, orientation_of, read_file, upright
from transferkit.images.error import ImageError
from transferkit.images.rgb import Samples, check_depth, check_range, rgb_of
from transferkit.images.silence import pillow_silenced

MODES = {2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels


def is_single(value: object) -> bool:
    """Return whether a value is one image rather than several: ``embed`` takes a list of images."""
    if isinstance(value, Tensor | np.ndarray):
        several = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "STU"  # paths, bytes
        return value.ndim < 4 and value.dtype != object and not several
    text = isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    return text or is_readable(value) or (type(value) is dict and "bytes" in value)


def pixels_of(image: Any) -> Tensor:
    """Return the RGB pixels of an image.

    Args:
        image: a path, the bytes of a file, a file opened in binary mode, a ``PIL.Image``, an array ``(H, W)`` or
            ``(H, W, 1 to 4)``, a tensor ``(H, W)`` or ``(1 to 4, H, W)``, or the mapping with ``bytes`` or ``path``
            that Hugging Face datasets have.

    Returns:
        uint8 (3, H, W).

    Raises:
        ImageError: it cannot be decoded, or is not an image.
    """
    if isinstance(image, Tensor):
        return of_tensor(image)
    if isinstance(image, np.ndarray):
        return of_array(image)
    if isinstance(image, Image.Image):
        return of_pillow(image)
    if isinstance(image, str | os.PathLike):
        return decode(read_file(os.fspath(image)))
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image))
    if is_readable(image):
        return decode(content_of(image))
    if isinstance(image, Mapping) and (image.get("bytes") or image.get("path")):
        return pixels_of(image.get("bytes") or image["path"])
    raise ImageError("not_an_image", f"{type(image).__name__} is not a path, bytes, file, PIL.Image, array or tensor")


def is_readable(value: object) -> TypeGuard[Any]:
    """Return whether a value is an open file."""
    return callable(getattr(value, "read", None)) and not isinstance(value, Image.Image)


def content_of(file: Any) -> bytes:
    """Return the rest of an open file; its beginning, if it has been read before and can be read again."""
    if getattr(file, "seekable", bool)():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise ImageError("not_a_file", "a file in text mode; open it with mode 'rb'")
    return data


def of_tensor(image: Tensor) -> Tensor:
    """Return the pixels of a tensor ``(H, W)`` or ``(1 to 4, H, W)``."""
    image = image.detach().cpu()
    if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel():
        return image
    if image.dtype == torch.bfloat16:
        image = image.float()
    values: NDArray[Any] = image.numpy()
    return of_values(values.transpose(1, 2, 0) if values.ndim == 3 else values, f"tensor {tuple(image.shape)}")


def of_array(image: NDArray[Any]) -> Tensor:
    """Return the pixels of an array ``(H, W)`` or ``(H, W, 1 to 4)``."""
    hint = "; its channels come last: transpose(1, 2, 0)" if image.ndim == 3 and image.shape[0] in (1, 3, 4) else ""
    return of_values(image, f"array {image.shape}", hint)


def of_values(values: NDArray[Any], name: str, hint: str = "") -> Tensor:
    """Return the pixels of values ``(H, W)`` or ``(H, W, 1 to 4)``; name and hint are for the message."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in MODES)) or not values.size:
        raise ImageError("unsupported_pixels", f"{name} is not one image{hint}")
    values = to_bytes(values, name)
    if values.ndim == 2:
        return torch.from_numpy(np.stack([values] * 3))
    if values.shape[2] != 3:  # with transparency
        values = rgb_of(Image.fromarray(np.ascontiguousarray(values)), Samples(8, False, None, None))
    return torch.from_numpy(np.array(values.transpose(2, 0, 1), order="C"))


def to_bytes(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return values as uint8: bool is black and white, floats of 0..1 are stretched to 0..255, 16 bits are shifted."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        if 0 < values.max() < 2**12:
            raise ImageError("unsupported_pixels", f"{name} of 16-bit values below 4096; scale them to 16 bits")
        return (values >> 8).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ImageError("unsupported_pixels", f"{name} of {values.dtype}; convert it to uint8, 0..255")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN, too
        raise ImageError(
            "unsupported_pixels", f"{name} of {values.dtype} outside 0..1; give pixels before they are normalized"
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def of_pillow(image: Image.Image) -> Tensor:
    """Return the pixels of Pillow's image: of the file that it was opened from, if they have not been loaded yet.

    A file shows more than its loaded pixels do, such as that its end is missing.
    """
    file = getattr(image, "fp", None)
    untouched = not getattr(image, "_im", None) and getattr(image, "tile", None)
    if file and untouched and not getattr(image, "decoderconfig", ()) and image.tell() == 0:
        place = file.tell()
        try:
            return decode(content_of(file))
        finally:
            file.seek(place)
    try:
        with pillow_silenced():
            image.load()
        check_range(image)
        deep = image.mode.startswith("I")
        if deep:
            check_depth(image, b"")  # type: ignore[arg-type]  # reads its pixels only
        clear = image.info.get("transparency") if deep else None  # Pillow applies that of 8 bits itself
        rgb = rgb_of(image, Samples(16 if deep else 8, False, None if clear is None else (clear,), None))
    except ImageError:
        raise
    except Exception as error:  # decoders raise exceptions of any type on broken data
        raise ImageError("corrupt", f"Pillow cannot load it: {error}") from error
    return upright(torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C")), orientation_of(image))
