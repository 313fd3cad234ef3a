"""Where images come from: a folder, a manifest, one file or the built-in digits, all as one table."""

import functools
import hashlib
import itertools
import logging
import operator
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.data.fingerprint import fingerprint, stamps
from transferkit.data.listing import IMAGE_SUFFIXES, picture_kind, walk
from transferkit.data.manifest import MANIFEST_SUFFIXES, SPLIT_WORDS, Columns, read_columns
from transferkit.data.torchvision_datasets import manifest_of, plain_name
from transferkit.errors import UserError, listed
from transferkit.images.decoding import read_image

_log = logging.getLogger(__name__)

DIGITS = "digits"


@dataclass(frozen=True)
class ImageTable:
    """Images with their labels and splits; rows are sorted by path, whatever order they were found in.

    Attributes:
        root: absolute folder that the paths are relative to, or ``"digits"`` (built-in).
        paths: relative posix paths, sorted and unique.
        labels: class name of each image, or ``None``.
        splits: ``"train"``, ``"val"``, ``"test"`` or ``None`` (not given) of each image.
        source: what the user named, for messages.
        empty: folders that stand for a class or a split and hold no image.
        seen: is told path and pixels of each image that this process decodes.
    """

    root: str
    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    splits: tuple[str | None, ...]
    source: str = ""
    empty: tuple[str, ...] = ()
    seen: Callable[[str, Tensor], None] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """In another process there is nobody to tell."""
        return {**self.__dict__, "seen": None}

    def __post_init__(self) -> None:
        """Check the invariants that everyone downstream relies on."""
        if not len(self.paths) == len(self.labels) == len(self.splits):
            raise ValueError("paths, labels and splits differ in length")
        if any(map(operator.ge, self.paths, itertools.islice(self.paths, 1, None))):
            raise ValueError("paths must be sorted and unique")

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    @property
    def class_names(self) -> list[str]:
        """Class names, sorted; the position of a name is the class index."""
        return sorted({label for label in self.labels if label is not None})

    def read(self, row: int) -> Tensor:
        """Decode one image.

        Returns:
            uint8 RGB pixels ``(3, H, W)``.

        Raises:
            ImageError: the file is missing, is no regular file, or cannot be decoded.
        """
        if self.root == DIGITS:
            digit: Tensor = _digits()[0][_row_of_digit(self.paths[row])]  # (8, 8)
            pixels = digit.repeat(3, 1, 1)  # (3, 8, 8)
        else:
            pixels = read_image(Path(self.root, self.paths[row]))
        if self.seen:
            self.seen(self.paths[row], pixels)
        return pixels

    def select(self, rows: Iterable[int]) -> "ImageTable":
        """The table of some rows, each once and in path order."""
        rows = sorted(set(rows))
        return ImageTable(
            self.root,
            tuple(self.paths[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            tuple(self.splits[row] for row in rows),
            self.source,
            seen=self.seen,
        )

    def stamps(self) -> list[str]:
        """What tells the present content of each image from an earlier one; see :mod:`transferkit.data.fingerprint`."""
        if self.root == DIGITS:
            return [f"0 0 0 {hashlib.sha256(_digits()[0].numpy().tobytes()).hexdigest()}"] * len(self)
        return stamps(self.root, self.paths)

    def fingerprint(self) -> str:
        """SHA-256 over relative paths and stamps; for the digits over paths and pixels.

        Labels and splits are not part of it: they do not change an embedding.
        """
        return fingerprint(self.paths, self.stamps())


def open_images(source: str | Path, image_root: str | Path | None = None) -> ImageTable:
    """List the images of a source without opening any of them.

    Args:
        source: a folder of class folders; a folder with ``train`` and ``val`` and/or ``test`` (class
            folders in each, or flat: then labelless); a flat folder; one image; a CSV or Parquet manifest;
            the word ``digits``, scikit-learn's 1,797 handwritten digits; or a dataset of torchvision's by
            name (``cifar10``; ``named.NAMED`` lists them), downloaded when it is first asked for. A folder of
            such a name in the current directory wins. Folders below a class folder belong to the class. Hidden files,
            ``__MACOSX`` and files without an image's extension are left out; links are followed, loops not.
        image_root: the folder that a manifest's paths are relative to, or lie in, where that is not its own.

    Raises:
        UserError: nothing there, no image, a name that is not UTF-8, a mixture of class and split folders,
            or a faulty manifest.
    """
    try:
        place = Path(source).expanduser()
        name = plain_name(str(source))
        if name and not place.exists():
            place = manifest_of(name)
        is_folder = place.is_dir()
        if not is_folder and str(source) != DIGITS:
            place.stat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no such folder or file: {str(source)!r} ({reason}); check the path") from error
    is_manifest = place.suffix.lower() in MANIFEST_SUFFIXES and not is_folder
    if image_root is not None:
        check_image_root(image_root, source, is_manifest)
    if is_folder:
        found = walk(place)
        for name, reason in found.closed:
            raise UserError(f"cannot read the folder {str(place / name)!r}: {reason}; change its rights or move it")
        table = arrange(place, found.images, found.folders)
        if unread := Counter(filter(None, map(picture_kind, found.others))):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(unread.items()))
            _log.warning("pictures in %r that are not read: %s; convert them to PNG or JPEG", str(source), kinds)
    elif str(source) == DIGITS:
        labels = [str(label) for label in _digits()[1]]
        table = table_of(DIGITS, [(f"{row:04d}.png", label, None) for row, label in enumerate(labels)], DIGITS)
    elif not place.is_file():  # a pipe would be waited for
        raise UserError(f"{str(source)!r} is neither a folder nor a regular file; give one of these")
    elif is_manifest:
        columns = read_manifest_columns(place, image_root)
        table = table_of_columns(root_of_manifest(place, image_root), columns, str(source))
    elif place.suffix.lower() in IMAGE_SUFFIXES:
        table = table_of(str(place.parent.resolve()), [(place.name, None, None)], str(source))
    elif kind := picture_kind(place.name):
        raise UserError(f"{str(source)!r} is a picture of a kind that is not read ({kind}); convert it to PNG or JPEG")
    else:
        raise UserError(f"{str(source)!r} is no image, .csv or .parquet; give a folder or one of these")
    if not table.paths:
        raise UserError(f"no images in {str(source)!r}; it needs files such as .jpg or .png, or class folders")
    return table


def check_trainable(table: ImageTable) -> None:
    """Refuse data that a classifier cannot be trained on. A test split may be labelless as a whole.

    Raises:
        UserError: no training image, missing labels, an empty class folder, a single class, or a class in
            val or test that train lacks.
    """
    source = repr(table.source or table.root)
    by_split: dict[str, set[str | None]] = {"train": set(), "val": set(), "test": set()}
    for label, split in zip(table.labels, table.splits, strict=True):
        by_split[split or "train"].add(label)
    if by_split["test"] == {None}:
        by_split["test"] = set()
    if not by_split["train"]:
        raise UserError(f"no training images in {source}; put some into its split 'train'")
    if all(label is None for label in table.labels):
        raise UserError(f"no labels in {source}; use one folder a class or a manifest with a column 'label'")
    rows = zip(table.paths, table.labels, table.splits, strict=True)
    bare = [path for path, label, split in rows if label is None and None in by_split[split or "train"]]
    if bare:
        raise UserError(
            f"labels are missing for {len(bare)} of {len(table)} images in {source}: {listed(bare)}; "
            "label them (class folder, or the manifest's column 'label') or remove them"
        )
    if table.empty:
        raise UserError(f"no images in the folder {listed(table.empty)} of {source}; fill it or delete it")
    train = {label for label in by_split["train"] if label is not None}
    for split in ("val", "test"):
        unknown = sorted(label for label in by_split[split] if label is not None and label not in train)
        if unknown:
            raise UserError(
                f"class {listed(unknown)} is in {split} but not in train of {source}; "
                f"add training images or remove it from {split}"
            )
    if len(train) == 1:
        raise UserError(
            f"a single class, {listed(sorted(train))}, in {source}; training needs at least two: "
            "give the folder that holds the class folders"
        )


def _row_of_digit(path: str) -> int:
    """Row of a built-in digit in scikit-learn's ``load_digits``: ``"0042.png"`` is 42."""
    return int(path.removesuffix(".png"))


@functools.cache
def _digits() -> tuple[Tensor, list[int]]:
    """Pixels ``(1797, 8, 8)`` uint8 (0..16 stretched to 0..255) and labels 0..9 of ``load_digits``."""
    from sklearn.datasets import load_digits  # 1 s to import, and few sources need it

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return torch.from_numpy(pixels), bunch.target.tolist()


def table_of(
    root: str, rows: Iterable[tuple[str, str | None, str | None]], source: str, empty: Sequence[str] = ()
) -> ImageTable:
    """A table of rows (path, label, split) in any order; see :class:`ImageTable`.

    Raises:
        UserError: a name that is not UTF-8, or a locale that cannot read those that are.
    """
    columns = Columns([], [], [])
    for path, label, split in rows:
        columns.paths.append(path)
        columns.labels.append(label)
        columns.splits.append(split)
    return table_of_columns(root, columns, source, empty)


def table_of_columns(root: str, columns: Columns, source: str, empty: Sequence[str] = ()) -> ImageTable:
    """As :func:`table_of`, of columns of path, label and split."""
    paths = columns.paths
    for path in itertools.filterfalse(str.isascii, (root, *paths)):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the file name {os.fsencode(path)!r} {_name_fault(path)}") from error
    if any(map(operator.gt, paths, itertools.islice(paths, 1, None))):
        columns = columns.select(sorted(range(len(paths)), key=paths.__getitem__))
    written = set(columns.labels)
    forms_of = Counter(map(one_form, written))  # a name that is written in two ways is one class
    forms = {label: one_form(label) if forms_of[one_form(label)] > 1 else label for label in written}
    labels = tuple(map(forms.__getitem__, columns.labels))
    return ImageTable(root, tuple(columns.paths), labels, tuple(columns.splits), source, tuple(empty))


def _name_fault(path: str) -> str:
    """What is wrong with a name that Python could not read as text."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return "is not UTF-8; rename it"
    return f"is UTF-8, but this locale has names read as {sys.getfilesystemencoding()}; set PYTHONUTF8=1"


def one_form(label: str | None) -> str | None:
    """A label in Unicode's composed form: file systems and editors write the same letters in two ways."""
    return label if label is None or label.isascii() else unicodedata.normalize("NFC", label)


def read_manifest_columns(
    manifest: Path, image_root: str | Path | None = None, faults: list[str] | None = None
) -> Columns:
    """The columns of a manifest; see :func:`~transferkit.data.manifest.read_columns`.

    Raises:
        UserError: likewise.
    """
    return read_columns(manifest, faults, image_root and Path(image_root).expanduser())


def root_of_manifest(manifest: Path, image_root: str | Path | None = None) -> str:
    """The absolute folder that a manifest's paths are relative to."""
    return str(Path(image_root or manifest.parent).expanduser().resolve())


def check_image_root(image_root: str | Path, source: str | Path, is_manifest: bool) -> None:
    """Refuse a folder of the images that is none, or goes with something else than a manifest.

    Raises:
        UserError: saying which.
    """
    if not is_manifest:
        raise UserError(f"an image root goes with a manifest (.csv, .parquet), not with {str(source)!r}; leave it out")
    if not Path(image_root).expanduser().is_dir():
        raise UserError(f"the image root {str(image_root)!r} is no folder; give the one that the images lie in")


def arrange(folder: Path, images: Sequence[str], folders: Sequence[str]) -> ImageTable:
    """Labels and splits of what :func:`~transferkit.data.listing.walk` found, by the folders it lies in.

    Raises:
        UserError: a name that is not UTF-8, or a mixture of class and split folders.
    """
    tops = {path.split("/", 1)[0] for path in images if "/" in path}
    split_folders = {top for top in tops if top.lower() in SPLIT_WORDS}
    words = {SPLIT_WORDS[top.lower()] for top in split_folders}
    if tops != split_folders and "train" in words and len(words) > 1:
        raise UserError(
            f"{str(folder)!r} holds the splits {listed(sorted(split_folders))} and beside them "
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
