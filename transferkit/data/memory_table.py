"""Images that Python holds, with their labels and splits, as a table like that of a folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from transferkit.data.columns import Columns
from transferkit.data.image_table import ImageTable, open_images, table_of_columns
from transferkit.data.targets import BAR, joined_labels, number_of, one_form
from transferkit.errors import UserError
from transferkit.images.from_python import pixels_of
from transferkit.images.image_source import check_column, each_image, read_pixels, undecoded, without_label

MEMORY = "images in memory"  # instead of a folder, for messages
LABEL_KEYS = ("label", "labels", "target", "fine_label", "class")  # of a dataset's rows, the usual ones first
MISSING = ("None", "nan", "NaN", "NaT", "<NA>")  # text of what Python, NumPy, pandas and Arrow put for no value
SPLITS = ("train", "val", "test", None)

Table = TypeVar("Table", bound=ImageTable)
Split = Callable[[Sequence[str], Sequence[str | None]], Sequence[str | None]]
"""The user's own split: paths and labels of all images -> ``train``, ``val``, ``test`` or None of each."""


class Row(NamedTuple):
    """An image of a dataset, read whenever it is needed.

    Attributes:
        dataset: map-style.
        number: of the row.
    """

    dataset: Any
    number: int


@dataclass(frozen=True)
class MemoryTable(ImageTable):
    """A table of images in any form that :func:`~transferkit.images.from_python.pixels_of` takes.

    Attributes:
        images: path -> image, of at least the table's paths.
        hashes: path -> hash of its pixels.
    """

    images: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    in_memory: ClassVar[bool] = True

    def decode(self, row: int) -> Tensor:
        """Return uint8 RGB pixels ``(3, H, W)``."""
        image = self.images[self.paths[row]]
        return pixels_of(without_label(image.dataset[image.number]) if isinstance(image, Row) else image)

    def stamps(self) -> list[str]:
        """Return the hash of each image's pixels."""
        return [f"0 0 0 {self.hashes[path]}" for path in self.paths]

    def content_hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """Return nothing: there are no files to compare with."""
        return {}


def table_of_images(
    images: Any,
    labels: Sequence[Any] | None = None,
    splits: Sequence[str | None] | None = None,
    split: Split | None = None,
    image_root: str | None = None,
    targets: Sequence[Any] | None = None,
    multilabel: bool = False,
) -> ImageTable:
    """Return the table of images in any form; each of those in memory is decoded once, to check it.

    Args:
        images: what :func:`~transferkit.data.image_table.open_images` opens; or a list, iterator or dataset as for
            :meth:`~transferkit.extractor.core.ExtractorCore.embed`.
        labels: class of each image, made to text; by default that of the folder or the dataset.
        splits: split of each image.
        split: a function that gives the splits.
        image_root: the folder of a manifest's paths; by default its own.
        targets: number of each image, instead of labels.
        multilabel: whether a label is a collection of classes.

    Raises:
        UserError: an image cannot be read, the numbers of labels, splits and images differ, or a label is missing of
            an image outside test.
    """
    if isinstance(images, str | Path):
        table = open_images(images, image_root, multilabel)
    else:
        table = held_in_memory(images, with_labels=labels is None and targets is None)
    if labels is not None and targets is not None:
        raise UserError("labels and targets are given; give the classes, or the numbers")
    if targets is not None:
        targets = list(targets)
        check_length("targets", targets, table)
        numbers = [number_text(target, row) for row, target in enumerate(targets)]
        table = replace(relabeled(table, numbers, list(table.splits)), kind="number")
        labels = targets
    elif labels is not None and multilabel:
        labels = list(labels)
        check_length("labels", labels, table)
        texts = [several_text(label, row) for row, label in enumerate(labels)]
        table = replace(relabeled(table, texts, list(table.splits)), kind="labels")
    elif labels is not None:
        labels = list(labels)
        check_length("labels", labels, table)
        if several := [row for row, label in enumerate(labels) if isinstance(label, list | tuple | set | frozenset)]:
            row = several[0]
            raise UserError(f"labels: item {row} is {labels[row]!r}; give one class per image, or `multilabel=True`")
        table = relabeled(table, [class_text(label) for label in labels], list(table.splits))
    if splits is not None and split is not None:
        raise UserError("splits and split are given; give the splits, or the function")
    if split is not None:
        splits = split(table.paths, table.labels)
    if splits is not None:
        splits = [None if name is None else str(name) for name in splits]
        check_length("splits", splits, table)
        if unknown := sorted({name for name in splits if name not in SPLITS}, key=str):
            raise UserError(f"splits has {unknown[0]!r}; give 'train', 'val', 'test' or None per image")
        table = relabeled(table, list(table.labels), splits)
    if labels is not None:
        check_present("labels" if targets is None else "targets", table.labels, table.splits)
    return table


def several_text(label: Any, row: int) -> str | None:
    """Return a collection of classes as a text; None if it is missing.

    Raises:
        UserError: it is one text, or a class has a bar.
    """
    if label is None:
        return None
    names = [class_text(name) or "" for name in label] if isinstance(label, Iterable) else []
    if isinstance(label, str) or not isinstance(label, Iterable) or any(BAR in name for name in names):
        raise UserError(f"labels: item {row} is {label!r}; give a list of classes without {BAR} per image")
    return joined_labels(one_form(name) or "" for name in names)


def number_text(target: Any, row: int) -> str | None:
    """Return a number as a text; None if it is missing.

    Raises:
        UserError: it is not a finite number.
    """
    text = class_text(target)
    value = number_of(text)
    if text not in (None, *MISSING) and value is None:
        raise UserError(f"targets: item {row} is {text!r}; give a finite number per image")
    return None if value is None else repr(value)


def check_length(name: str, values: Sequence[Any], table: ImageTable) -> None:
    """Raise if there are not as many values as images.

    Raises:
        UserError: naming the argument.
    """
    if len(values) != len(table):
        raise UserError(f"{name}: {len(values)} for {len(table)} images; give one per image")


def check_present(name: str, labels: Iterable[Any], splits: Iterable[str | None] = ()) -> None:
    """Raise if a label is missing: None, NaN of any library, or empty; images of test need none.

    Raises:
        UserError: naming the argument and the first such item.
    """
    for row, (label, split) in enumerate(zip(labels, chain(splits, repeat(None)), strict=False)):
        if class_text(label) is None and split != "test":
            raise UserError(f"{name}: item {row} is missing; give a class, or leave the image out")


def class_text(label: Any) -> str | None:
    """Return a class as text; None if it is missing.

    >>> [class_text(label) for label in ("ant", 7, float("nan"), "")]
    ['ant', '7', None, None]
    """
    text = str(label.item() if isinstance(label, Tensor) else label)
    return None if not text or (text in MISSING and not isinstance(label, str)) else text


def relabeled(table: Table, labels: list[str | None], splits: list[str | None]) -> Table:
    """Return the table with other labels and splits, labels in one Unicode form."""
    columns = table_of_columns(table.root, Columns(list(table.paths), labels, splits), table.source)
    return replace(table, labels=columns.labels, splits=columns.splits, empty=())


def held_in_memory(images: Any, with_labels: bool = True) -> MemoryTable:
    """Return the table of a list, iterator or dataset; named by their numbers, and by their paths if they have any.

    Args:
        images: the images.
        with_labels: whether to look for labels, which may decode images.

    Raises:
        UserError: an image cannot be read; there are none.
    """
    images = in_order(images)
    once: list[Any] = []  # labels of an iterator, which can be read once
    labels = labels_of(images) if with_labels else None
    held, hashes = hold(noting_labels(images, once) if with_labels and isinstance(images, Iterator) else images)
    if any(label is not None for label in once):
        labels = [named(label, None) for label in once]
    paths = tuple(held)
    bare: tuple[None, ...] = (None,) * len(paths)
    table = MemoryTable(MEMORY, paths, bare, bare, MEMORY, images=held, hashes=hashes)
    return relabeled(table, labels, list(bare)) if labels else table


def in_order(images: Any) -> Any:
    """Return a column of pandas as a list, since it numbers rows by its index; anything else as it is.

    Raises:
        UserError: it is a table of columns.
    """
    check_column(images)
    return list(images) if hasattr(images, "iloc") else images


def hold(images: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Read images once, and keep what they can be read from again: their pixels only where there is nothing else.

    Returns:
        Name -> what :class:`MemoryTable` decodes, and name -> hash of the pixels, in the order given.

    Raises:
        UserError: an image cannot be read; there are none.
    """
    images = in_order(images)
    source = undecoded(images)
    lazy = hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, list | tuple)
    held: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for number, image in enumerate(each_image(images)):
        pixels = read_pixels(image, number)
        name = f"{number:07d}/{Path(image).name}" if isinstance(image, str | Path) else f"{number:07d}"
        hashes[name] = hash_of(pixels)
        if lazy and not isinstance(source, Tensor | np.ndarray):
            held[name] = Row(source, number)
        else:  # an open file or Pillow's image must not be read by several threads
            held[name] = image if isinstance(image, str | Path | bytes | Tensor | np.ndarray) else pixels
    if not held:
        raise UserError("`images` is empty; give some")
    return held, hashes


def hash_of(pixels: Tensor) -> str:
    """Return a hash of an image's size and pixels."""
    return blake2b(
        pixels.contiguous().numpy().tobytes() + str(tuple(pixels.shape)).encode(), digest_size=16
    ).hexdigest()


def labels_of(images: Any) -> list[str | None] | None:
    """Return the classes of a dataset's rows: of torchvision's, Hugging Face's, or the second of each pair."""
    features = getattr(images, "features", None)
    if isinstance(features, Mapping) and hasattr(images, "cast_column"):
        column = next((name for name in LABEL_KEYS if name in features), None)
        if column is None:
            return None
        names = getattr(features[column], "names", None)
        values = list(images.select_columns([column])[column]) if hasattr(images, "__len__") else None
        return values and [named(value, names) for value in values]
    targets, names = getattr(images, "targets", None), getattr(images, "classes", None)
    if targets is not None and hasattr(images, "__len__") and len(targets) == len(images):
        return [named(value, names) for value in list(targets)]
    if isinstance(images, Tensor | np.ndarray | str | Path) or not hasattr(images, "__len__"):
        return None
    found = [label_of(images[row]) for row in range(len(images))]
    return [named(label, names) for label in found] if any(label is not None for label in found) else None


def noting_labels(rows: Iterator[Any], labels: list[Any]) -> Iterator[Any]:
    """Yield rows, and append the label of each to a list."""
    for row in rows:
        labels.append(label_of(row))
        yield row


def label_of(row: Any) -> Any:
    """Return the label of a dataset's row: the second of a pair, or the usual column of a mapping."""
    if isinstance(row, tuple) and len(row) > 1:
        return row[1]
    if isinstance(row, Mapping):
        return next((row[name] for name in LABEL_KEYS if name in row), None)
    return None


def named(value: Any, names: Sequence[str] | None) -> str | None:
    """Return a class as text: its name, if it is the number of one."""
    if isinstance(value, str) or class_text(value) is None:
        return class_text(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        return class_text(value)
    return str(names[number]) if names is not None and 0 <= number < len(names) else str(number)
