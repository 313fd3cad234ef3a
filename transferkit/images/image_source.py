"""Several images in any form that Python has: lists, iterators, datasets of torch and Hugging Face."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.errors import UserError
from transferkit.images.error import ImageError
from transferkit.images.from_python import is_single, pixels_of

IMAGE_KEYS = ("image", "img", "pixels", "jpg", "png")  # of a dataset's rows, the usual ones first


def count_of(images: Any) -> int | None:
    """Return the number of images; None for an iterator."""
    return len(images) if hasattr(images, "__len__") else None


def each_image(images: Any) -> Iterator[Any]:
    """Return an iterator over images, without their labels.

    Args:
        images: an iterable of images, of pairs (image, label) or of rows with a column ``image``; a map-style dataset.

    Raises:
        UserError: it is a single image, or nothing that has images.
    """
    if is_single(images):
        shown = repr(images) if isinstance(images, str | Path) else f"one {type(images).__name__}"
        raise UserError(
            f"embed takes a list of images, not {shown}; for a folder use transferkit.embed.embed, else give [image]"
        )
    check_column(images)
    if isinstance(images, Mapping) or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise UserError(f"`images` is of type {type(images).__name__}; give a list of images, an iterator or a dataset")
    images = undecoded(images)
    rows: Iterable[Any] = images
    if not hasattr(images, "__iter__") and hasattr(images, "__len__"):  # a map-style dataset need not end by itself
        rows = (images[row] for row in range(len(images)))
    return map(without_label, rows)


def check_column(images: Any) -> None:
    """Raise for a whole table of pandas, polars or Arrow: what one iterates over are its columns, or their names.

    Raises:
        UserError: naming the type.
    """
    if hasattr(type(images), "columns"):
        raise UserError(f"`images` is a whole {type(images).__name__}; give its column of images: table['path']")


def undecoded(images: Any) -> Any:
    """Return a Hugging Face dataset with files instead of decoded images, so that ours is the only decoder."""
    features = getattr(images, "features", None)
    if not (isinstance(features, Mapping) and hasattr(images, "cast_column")):
        return images
    from datasets import Image  # it is one of its datasets, so it is installed

    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not columns:
        raise UserError(f"`images` has no column of images, only {', '.join(features)}; cast one to datasets.Image")
    column = next((name for name in IMAGE_KEYS if name in columns), columns[0])
    return images.select_columns([column]).cast_column(column, Image(decode=False))


def without_label(row: Any) -> Any:
    """Return the image of a dataset's row: the first of a tuple, or the column of a mapping."""
    if isinstance(row, tuple) and row:
        return row[0]
    if isinstance(row, Mapping) and not ("bytes" in row and "path" in row):
        key = next((name for name in IMAGE_KEYS if name in row), None)
        if key is None and len(row) == 1:
            key = next(iter(row))
        return row if key is None else row[key]
    return row


def read_pixels(image: Any, row: int) -> Tensor:
    """Return the pixels of an image: uint8 (3, H, W).

    Raises:
        UserError: it cannot be read as an image.
    """
    try:
        return pixels_of(image)
    except ImageError as error:
        name = image if isinstance(image, str | Path) else f"`images`: item {row}"
        raise UserError(f"{name} cannot be read as an image: {error}") from error
