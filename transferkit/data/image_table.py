"""A table of images from a folder, a manifest, one file or the built-in digits."""

import functools
import hashlib
import itertools
import logging
import operator
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from transferkit.data.columns import Columns, take
from transferkit.data.fingerprint import fingerprint, stamps
from transferkit.data.listing import picture_kind, walk
from transferkit.data.manifest import MANIFEST_SUFFIXES, SPLIT_WORDS, kind_of, read_columns
from transferkit.data.targets import TARGETS, Kind, check_bars, one_form
from transferkit.data.torchvision_datasets import manifest_of, plain_name
from transferkit.errors import UserError, listed
from transferkit.images.decoding import read_image
from transferkit.images.formats import SUFFIXES
from transferkit.runtime.files import file_sha256
from transferkit.runtime.unicode_names import other_form

log = logging.getLogger(__name__)

DIGITS = "digits"


@dataclass(frozen=True)
class ImageTable:
    """Images with their labels and splits; rows are sorted by path.

    Attributes:
        root: absolute folder that the paths are relative to; ``"digits"`` for a :class:`DigitsTable`.
        paths: relative POSIX paths, sorted and unique.
        labels: class name of each image, or ``None``; or what else is known of it, as a text of its kind.
        splits: ``"train"``, ``"val"``, ``"test"`` or ``None`` (not given) of each image.
        source: what the user named, for messages.
        empty: folders that stand for a class or a split and contain no image.
        groups: name of the group of each image, ``None`` for one by itself; images of a group (a patient, a burst, a
            video, a place) are never drawn to two sides. ``None`` if the source has no groups.
        kind: what the labels are, see :mod:`transferkit.data.targets`.
        seen: is called with path and pixels of each image that this process decodes.
        in_memory: whether the pixels are in memory, so that there are no files to check, stamp or remember.
    """

    root: str
    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    splits: tuple[str | None, ...]
    source: str = ""
    empty: tuple[str, ...] = ()
    groups: tuple[str | None, ...] | None = None
    kind: Kind = "class"
    seen: Callable[[str, Tensor], None] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without ``seen``, which stays in this process."""
        return {**self.__dict__, "seen": None}

    in_memory: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the order and the lengths."""
        if not len(self.paths) == len(self.labels) == len(self.splits):
            raise ValueError("paths, labels and splits differ in length")
        if self.groups is not None and len(self.groups) != len(self.paths):
            raise ValueError("paths and groups differ in length")
        if any(map(operator.ge, self.paths, itertools.islice(self.paths, 1, None))):
            raise ValueError("paths must be sorted and unique")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @property
    def class_names(self) -> list[str]:
        """Class names, sorted; the position of a name is the class index."""
        return TARGETS[self.kind].names(self.labels)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Path -> row."""
        return {path: row for row, path in enumerate(self.paths)}

    def file(self, row: int) -> Path:
        """Return the file of one image."""
        return Path(self.root, self.paths[row])

    def read(self, row: int) -> Tensor:
        """Decode one image.

        Returns:
            uint8 RGB pixels ``(3, H, W)``.

        Raises:
            ImageError: the file is missing, is not a regular file, or cannot be decoded.
        """
        pixels = self.decode(row)
        if self.seen:
            self.seen(self.paths[row], pixels)
        return pixels

    def decode(self, row: int) -> Tensor:
        """Decode one image, without telling ``seen``; see :meth:`read`."""
        return read_image(self.file(row))

    def select(self, rows: Iterable[int]) -> "ImageTable":
        """Return the table of some rows, each once and in path order."""
        paths, labels, splits, groups = take(self, sorted(set(rows)))
        kept = None if groups is None else tuple(groups)
        return replace(self, paths=tuple(paths), labels=tuple(labels), splits=tuple(splits), groups=kept, empty=())

    def stamps(self) -> list[str]:
        """Return a text per image that changes with its content; see :mod:`transferkit.data.fingerprint`."""
        return stamps(self.root, self.paths)

    def content_hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of each file's bytes by path; empty if there are no files.

        Raises:
            OSError: a file cannot be read.
        """
        return {path: file_sha256(self.file(self.row_of[path])) for path in paths}

    def fingerprint(self) -> str:
        """Return the SHA-256 over relative paths and stamps.

        Labels and splits are not part of it: they do not change an embedding.
        """
        return fingerprint(self.paths, self.stamps())


class DigitsTable(ImageTable):
    """scikit-learn's handwritten digits, whose pixels are in memory; row 42 of ``load_digits`` is ``0042.png``."""

    in_memory = True

    def decode(self, row: int) -> Tensor:
        """Return uint8 RGB pixels ``(3, 8, 8)``."""
        digit = digits()[0][int(self.paths[row].removesuffix(".png"))]  # (8, 8)
        return digit.repeat(3, 1, 1)

    def stamps(self) -> list[str]:
        """Return the hash of all pixels for each image."""
        return [f"0 0 0 {hashlib.sha256(digits()[0].numpy().tobytes()).hexdigest()}"] * len(self)

    def content_hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """Return nothing: there are no files."""
        return {}


@functools.cache
def digits() -> tuple[Tensor, list[int]]:
    """Return pixels ``(1797, 8, 8)`` uint8 (0..16 stretched to 0..255) and labels 0..9 of ``load_digits``."""
    from sklearn.datasets import load_digits  # 1 s to import, and few sources need it

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return torch.from_numpy(pixels), bunch.target.tolist()


def table_class(root: str) -> type[ImageTable]:
    """Return the class of a table with this root."""
    return DigitsTable if root == DIGITS else ImageTable


def open_images(source: str | Path, image_root: str | Path | None = None, multilabel: bool | None = None) -> ImageTable:
    """List the images of a source without opening any of them.

    Args:
        source: a folder of class folders; a folder with ``train`` and ``val`` and/or ``test`` (class
            folders in each, or flat: then labelless); a flat folder; one image; a CSV or Parquet manifest;
            the word ``digits``, scikit-learn's 1,797 handwritten digits; or the name of a torchvision dataset
            (``cifar10``; ``torchvision_datasets.NAMED`` lists them), downloaded on first use. A folder of
            such a name in the current directory takes precedence. Folders below a class folder belong to the class.
            Hidden files, ``__MACOSX`` and files without an image's extension are left out; links are followed, loops
            are not.
        image_root: the folder that a manifest's paths are relative to, or lie in; by default its own.
        multilabel: whether a manifest's label is several, ``cat|dog`` or a list; None takes lists alone for several.

    Raises:
        UserError: the source does not exist, has no image, a name that is not UTF-8, a mixture of class and split
            folders, or is a faulty manifest.
    """
    path = Path(source)
    try:
        path = path.expanduser()
        name = plain_name(str(source))
        if name and not path.exists():
            path = manifest_of(name)
        is_folder = path.is_dir()
        if not is_folder and str(source) != DIGITS:
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"{getattr(error, 'strerror', None) or error}{other_form(path)}"
        raise UserError(f"no such folder or file: {str(source)!r} ({reason}); check the path") from error
    is_manifest = path.suffix.lower() in MANIFEST_SUFFIXES and not is_folder
    if image_root is not None:
        check_image_root(image_root, source, is_manifest)
    if is_folder:
        found = walk(path)
        for name, fault in found.closed:
            raise UserError(f"cannot read the folder {str(path / name)!r}: {fault}; change its rights or move it")
        table = arrange(path, found.images, found.folders)
        if unread := Counter(filter(None, map(picture_kind, found.others))):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(unread.items()))
            log.warning("pictures in %r that are not read: %s; convert them to PNG or JPEG", str(source), kinds)
    elif str(source) == DIGITS:
        table = table_of(DIGITS, [(f"{row:04d}.png", str(n), None) for row, n in enumerate(digits()[1])], DIGITS)
    elif not path.is_file():  # reading a pipe might never return
        raise UserError(f"{str(source)!r} is neither a folder nor a regular file; give one of these")
    elif is_manifest:
        kind = kind_of(path, multilabel)
        columns = read_columns(path, image_root=image_root, kind=kind)
        table = table_of_columns(root_of_manifest(path, image_root), columns, str(source), kind=kind)
    elif path.suffix.lower() in SUFFIXES:
        table = table_of(str(path.parent.resolve()), [(path.name, None, None)], str(source))
    elif picture := picture_kind(path.name):
        raise UserError(
            f"{str(source)!r} is a picture of a kind that is not read ({picture}); convert it to PNG or JPEG"
        )
    else:
        raise UserError(f"{str(source)!r} is not an image, .csv or .parquet; give a folder or one of these")
    if not table.paths:
        raise UserError(f"no images in {str(source)!r}; it needs files such as .jpg or .png, or class folders")
    return table


def check_trainable(table: ImageTable) -> None:
    """Raise if a classifier cannot be trained on the data. A test split may have no labels at all.

    Raises:
        UserError: no training image, missing labels, an empty class folder, a single class, or a class in
            val or test that is not in train.
    """
    source = repr(table.source or table.root)
    column = TARGETS[table.kind].column
    by_split: dict[str, set[str | None]] = {"train": set(), "val": set(), "test": set()}
    for label, split in zip(table.labels, table.splits, strict=True):
        by_split[split or "train"].add(label)
    if by_split["test"] == {None}:
        by_split["test"] = set()
    if not by_split["train"]:
        raise UserError(f"no training images in {source}; put some into its split 'train'")
    if all(label is None for label in table.labels):
        remedy = f"use one folder per class or a manifest with a column {column!r}"
        raise UserError(f"no labels in {source}; {'give labels, one per image' if table.in_memory else remedy}")
    rows = zip(table.paths, table.labels, table.splits, strict=True)
    bare = [path for path, label, split in rows if label is None and None in by_split[split or "train"]]
    if bare:
        raise UserError(
            f"labels are missing for {len(bare)} of {len(table)} images in {source}: {listed(bare)}; "
            f"label them (class folder, or the manifest's column {column!r}) or remove them"
        )
    if table.empty:
        raise UserError(f"no images in the folder {listed(table.empty)} of {source}; fill it or delete it")
    names = TARGETS[table.kind].names
    check_bars(table.class_names, source)
    train = set(names(by_split["train"]))
    for split in ("val", "test"):
        unknown = [name for name in names(by_split[split]) if name not in train]
        if unknown:
            raise UserError(
                f"class {listed(unknown)} is in {split} but not in train of {source}; "
                f"add training images or remove it from {split}"
            )
    sides = zip(table.labels, table.splits, strict=True)
    TARGETS[table.kind].check([label for label, split in sides if (split or "train") == "train"], source)


def table_of(
    root: str, rows: Iterable[tuple[str, str | None, str | None]], source: str, empty: Sequence[str] = ()
) -> ImageTable:
    """Return a table of rows (path, label, split) in any order; see :class:`ImageTable`.

    Raises:
        UserError: a name is not UTF-8, or the locale cannot decode it.
    """
    columns = Columns([], [], [])
    for path, label, split in rows:
        columns.paths.append(path)
        columns.labels.append(label)
        columns.splits.append(split)
    return table_of_columns(root, columns, source, empty)


def table_of_columns(
    root: str, columns: Columns, source: str, empty: Sequence[str] = (), kind: Kind = "class"
) -> ImageTable:
    """:func:`table_of` for columns of path, label, split and group; labels of a kind."""
    paths = columns.paths
    for path in itertools.filterfalse(str.isascii, (root, *paths)):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the file name {os.fsencode(path)!r} {name_fault(path)}") from error
    if any(map(operator.gt, paths, itertools.islice(paths, 1, None))):
        columns = take(columns, sorted(range(len(paths)), key=paths.__getitem__))
    written = set(columns.labels)
    forms_of = Counter(map(one_form, written))  # a name in two Unicode forms is one class
    forms = {label: one_form(label) if forms_of[one_form(label)] > 1 else label for label in written}
    labels = tuple(map(forms.__getitem__, columns.labels))
    groups = None if columns.groups is None else tuple(columns.groups)
    splits = tuple(columns.splits)
    return table_class(root)(root, tuple(columns.paths), labels, splits, source, tuple(empty), groups, kind)


def name_fault(path: str) -> str:
    """Return what is wrong with a name that Python could not decode."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return "is not UTF-8; rename it"
    return f"is UTF-8, but this locale decodes names as {sys.getfilesystemencoding()}; set PYTHONUTF8=1"


def root_of_manifest(manifest: Path, image_root: str | Path | None = None) -> str:
    """Return the absolute folder that a manifest's paths are relative to."""
    return str(Path(image_root or manifest.parent).expanduser().resolve())


def check_image_root(image_root: str | Path, source: str | Path, is_manifest: bool) -> None:
    """Validate an image root.

    Raises:
        UserError: the source is not a manifest, or the image root is not a folder.
    """
    if not is_manifest:
        raise UserError(f"`image_root` is for a manifest (.csv, .parquet), not for {str(source)!r}; leave it out")
    if not Path(image_root).expanduser().is_dir():
        raise UserError(f"`image_root` {str(image_root)!r} is not a folder; give the one that contains the images")


def kept_image_root(image_root: str | None, source: str | Path) -> str | None:
    """Return the image root of earlier images for others: another manifest keeps it, a folder or an image has none."""
    path = Path(source)
    return image_root if path.suffix.lower() in MANIFEST_SUFFIXES and not path.is_dir() else None


def arrange(folder: Path, images: Sequence[str], folders: Sequence[str]) -> ImageTable:
    """Return a table of the images that :func:`~transferkit.data.listing.walk` found, labels and splits by folder.

    Raises:
        UserError: a name is not UTF-8, or class and split folders are mixed.
    """
    tops = {path.split("/", 1)[0] for path in images if "/" in path}
    split_folders = {top for top in tops if top.lower() in SPLIT_WORDS}
    words = {SPLIT_WORDS[top.lower()] for top in split_folders}
    if tops != split_folders and "train" in words and len(words) > 1:
        raise UserError(
            f"{str(folder)!r} contains the splits {listed(sorted(split_folders))} and also "
            f"{listed(sorted(tops - split_folders))}; move the latter elsewhere or give a manifest"
        )
    is_split = bool(tops) and tops == split_folders
    depth = 2 if is_split else 1  # where the class folders are
    rows: list[tuple[str, str | None, str | None]] = []
    for path in images:
        parts = path.split("/", depth)
        label = parts[depth - 1] if len(parts) > depth else None
        split = SPLIT_WORDS[parts[0].lower()] if is_split and len(parts) > 1 else None
        rows.append((path, label, split))
    filled = {"/".join(path.split("/")[:level]) for path in images for level in range(1, depth + 1)}
    expected = [
        name
        for name in folders
        if name.count("/") < depth and (not is_split or name.split("/", 1)[0].lower() in SPLIT_WORDS)
    ]
    empty = sorted(name for name in expected if name not in filled)
    return table_of(str(folder.resolve()), rows, str(folder), empty)
