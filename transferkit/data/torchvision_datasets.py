"""torchvision's datasets by name: downloaded once, then used as a manifest of image files.

Datasets that torchvision stores as arrays (CIFAR, MNIST, STL10, SVHN) are written out as PNG files once. After that
only the manifest and the images of a dataset are opened, and caches see files as for any other data.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from transferkit.errors import UserError, first_line
from transferkit.runtime.files import atomic_path, cache_dir
from transferkit.runtime.progress import progress_bar
from transferkit.runtime.reachability import require_network

MANIFEST = "manifest.parquet"
ARCHIVES = (".gz", ".tgz", ".zip")


class Named(NamedTuple):
    """A torchvision dataset: its class, where it is downloaded from, and its arguments for each split."""

    kind: str
    host: str
    splits: Mapping[str | None, Mapping[str, Any]]


TRAIN_OR_NOT: dict[str | None, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
TWO: dict[str | None, dict[str, Any]] = {name: {"split": name} for name in ("train", "test")}
THREE: dict[str | None, dict[str, Any]] = {name: {"split": name} for name in ("train", "val", "test")}
VALID: dict[str | None, dict[str, Any]] = {**THREE, "val": {"split": "valid"}}
TRAINVAL: dict[str | None, dict[str, Any]] = {"train": {"split": "trainval"}, "test": {"split": "test"}}

NAMED = {
    "cifar10": Named("CIFAR10", "https://www.cs.toronto.edu", TRAIN_OR_NOT),
    "cifar100": Named("CIFAR100", "https://www.cs.toronto.edu", TRAIN_OR_NOT),
    "country211": Named("Country211", "https://openaipublic.azureedge.net", VALID),
    "dtd": Named("DTD", "https://www.robots.ox.ac.uk", THREE),
    "eurosat": Named("EuroSAT", "https://huggingface.co", {None: {}}),
    "fashionmnist": Named("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", TRAIN_OR_NOT),
    "fgvcaircraft": Named("FGVCAircraft", "https://www.robots.ox.ac.uk", THREE),
    "flowers102": Named("Flowers102", "https://www.robots.ox.ac.uk", THREE),
    "food101": Named("Food101", "http://data.vision.ee.ethz.ch", TWO),
    "mnist": Named("MNIST", "https://ossci-datasets.s3.amazonaws.com", TRAIN_OR_NOT),
    "oxfordiiitpet": Named("OxfordIIITPet", "https://www.robots.ox.ac.uk", TRAINVAL),
    "stl10": Named("STL10", "http://ai.stanford.edu", TWO),
    "svhn": Named("SVHN", "http://ufldl.stanford.edu", TWO),
}


def plain_name(source: str) -> str | None:
    """Return the key in ``NAMED`` for a name (``CIFAR-10`` is ``cifar10``), or None."""
    name = source.lower().replace("-", "").replace("_", "")
    return name if name in NAMED else None


def manifest_of(name: str) -> Path:
    """Return the manifest of a named dataset, which is downloaded on first use.

    It is in ``datasets/<name>`` of the cache directory. If torchvision's own files are already in that folder, they
    are used.

    Args:
        name: a key of ``NAMED``.

    Raises:
        UserError: there is no network, or the files are broken or incomplete.
    """
    folder = cache_dir() / "datasets" / name
    manifest = folder / MANIFEST
    if manifest.is_file():
        return manifest
    named = NAMED[name]
    if folder.is_dir():
        write_manifest(named, folder, download=False)
        return manifest
    remedy = f"put torchvision's {named.kind} files into {folder}, or give a folder of images"
    require_network(named.host, f"the dataset {name}", remedy)
    with atomic_path(folder, folder=True) as temporary:  # half an archive is never mistaken for a dataset
        write_manifest(named, temporary, download=True)
        for file in [path for path in temporary.rglob("*") if path.suffix in ARCHIVES]:
            file.unlink()
    return manifest


def write_manifest(named: Named, folder: Path, download: bool) -> None:
    """Write the manifest of a dataset in torchvision's layout, and PNG files if it has no image files.

    torchvision reads CIFAR with pickle. Its constructor first compares the MD5 of every file with the published one
    (a test checks that), so that no foreign pickle is ever loaded.

    Raises:
        UserError: files are missing, broken or cannot be downloaded.
    """
    rows: list[tuple[str, str, str | None]] = []
    for split, options in named.splits.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision prints progress to stdout
                rows += read_split(named, folder, split, {**options, "download": download})
        except (OSError, RuntimeError, ValueError, EOFError) as error:  # urllib's are OSErrors
            remedy = "try again" if download else "complete the files, or delete the folder to download them"
            raise UserError(
                f"torchvision's {named.kind} could not be loaded in {folder}: {first_line(error)}; {remedy}"
            ) from error
    paths, labels, splits = zip(*rows, strict=True)
    columns = {"path": paths, "label": labels, "split": splits}
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), temporary)


def read_split(
    named: Named, folder: Path, split: str | None, options: Mapping[str, Any]
) -> list[tuple[str, str, str | None]]:
    """Return path relative to the folder, label and split of each image of one split; arrays become files."""
    from torchvision import datasets  # 1 s to import, and few sources need it

    kind = getattr(datasets, named.kind)
    if named.kind == "OxfordIIITPet":  # the only one that takes no loader
        pets = kind(str(folder), **options)
        items = list(zip(pets._images, pets._labels, strict=True))
        classes = pets.classes
    elif "loader" in kind.__init__.__annotations__:
        files = kind(str(folder), **options, loader=Path)  # its items are (path, class), nothing is decoded
        items = [files[row] for row in range(len(files))]
        classes = files.classes
    else:
        arrays = kind(str(folder), **options)
        items = list(write_images(arrays, folder / "images" / str(split), f"{named.kind}, {split}"))
        classes = getattr(arrays, "classes", None)
    names = classes or {number: str(number) for _, number in items}
    return [(os.path.relpath(path, folder), names[number], split) for path, number in items]


def write_images(dataset: Any, folder: Path, label: str) -> list[tuple[Path, int]]:
    """Write each picture of a dataset of arrays as PNG, without loss; return path and class number of each."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    with progress_bar(f"writing {label}", len(dataset)) as advance:
        for row in range(len(dataset)):
            image, number = dataset[row]
            assert isinstance(image, Image.Image)
            path = folder / f"{row:06d}.png"
            image.save(path, compress_level=1)
            items.append((path, int(number)))
            advance(1)
    return items
