"""torchvision's datasets by name, on tiny fakes of their layouts; torchvision's own reading is the oracle."""

import hashlib
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from transferkit.data import torchvision_datasets
from transferkit.data.image_table import open_images
from transferkit.errors import UserError

noise = np.random.default_rng(0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "datasets"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.integers(0, 256, (12, 10, 3), np.uint8)).save(path)


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def batch(name: str, labels: list[int]) -> list[str]:
        content = {"data": noise.integers(0, 256, (len(labels), 3072), np.uint8), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [batch("data_batch_1", [0, 1]), batch("data_batch_2", [1, 0])])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", [1])])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["air/plane", "bird"]}))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, count in (("train", 3), ("test", 2), ("unlabeled", 0)):
        noise.integers(0, 256, count * 3 * 96 * 96, np.uint8).tofile(folder / f"{name}_X.bin")
        np.array([1, 2, 1][:count], np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    for kind in ("train_list", "test_list"):
        files = [[name, md5(folder / name)] for name, _ in getattr(datasets.STL10, kind)]
        monkeypatch.setattr(datasets.STL10, kind, files)


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True)
    files = {}
    for name, count in (("train", 3), ("test", 2)):
        file = root / f"{name}_32x32.mat"
        labels = np.array([[10], [3], [1]][:count])
        savemat(file, {"X": noise.integers(0, 256, (32, 32, 3, count), np.uint8), "y": labels})
        files[name] = ["", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for number in range(1, 7):
        write_image(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 77])})
    savemat(folder / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([5, 6])})
    sums = {name: (file, md5(folder / file)) for name, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", {"image": ("102flowers.tgz", ""), **sums})


def oxfordiiitpet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = root / "oxford-iiit-pet" / "annotations"
    notes.mkdir(parents=True)
    lists = {
        "trainval": [("Abyssinian_1", 1), ("great_pyrenees_2", 2)],
        "test": [("Abyssinian_3", 1), ("great_pyrenees_4", 2)],
    }
    for split, rows in lists.items():
        (notes / f"{split}.txt").write_text("".join(f"{name} {label} 1 1\n" for name, label in rows))
        for name, _ in rows:
            write_image(root / "oxford-iiit-pet" / "images" / f"{name}.jpg")


def dtd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        files = [f"{texture}/{texture}_{split}.jpg" for texture in ("banded", "woven")]
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(files) + "\n")
        for file in files:
            write_image(folder / "images" / file)


def food101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        files = {dish: [f"{dish}/{split}_{number}" for number in range(2)] for dish in ("pho", "apple_pie")}
        (folder / "meta" / f"{split}.json").write_text(json.dumps(files))
        for name in (name for names in files.values() for name in names):
            write_image(folder / "images" / f"{name}.jpg")


def eurosat(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Forest/Forest_1", "Forest/Forest_2", "River/River_1"):
        write_image(root / "eurosat" / "2750" / f"{name}.jpg")


Fake = Callable[[Path, pytest.MonkeyPatch], None]
FAKES: list[Fake] = [cifar10, stl10, svhn, flowers102, oxfordiiitpet, dtd, food101, eurosat]


def as_torchvision_reads_it(name: str, root: Path) -> list[tuple[str | None, str, bytes]]:
    """Split, label and pixels of every image through torchvision alone, in any order."""
    spec = torchvision_datasets.NAMED[name]
    found = []
    for split, options in spec.splits.items():
        dataset: Any = getattr(datasets, spec.kind)(str(root), **options)
        for row in range(len(dataset)):
            image, number = dataset[row]
            label = dataset.classes[number] if hasattr(dataset, "classes") else str(number)
            found.append((split, label, np.asarray(image).tobytes()))
    return sorted(found, key=str)


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_images_labels_and_splits_are_torchvisions(fake: Fake, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fake.__name__
    fake(cache / name, monkeypatch)
    table = open_images(name)
    pixels = [table.read(row).permute(1, 2, 0).contiguous().numpy().tobytes() for row in range(len(table))]
    ours = sorted(zip(table.splits, table.labels, pixels, strict=True), key=str)
    assert ours == as_torchvision_reads_it(name, cache / name)
    assert table.source == name


def test_after_the_first_time_torchvision_is_not_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(cache / "cifar10", monkeypatch)
    first = open_images("cifar10")
    monkeypatch.setattr(datasets, "CIFAR10", None)
    again = open_images("CIFAR-10")
    assert (again.paths, again.labels) == (first.paths, first.labels)
    assert again.fingerprint() == first.fingerprint()


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_pickle_that_is_not_the_published_one_is_never_loaded(
    file: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10(cache / "cifar10", monkeypatch)
    (cache / "cifar10" / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match=r"torchvision's CIFAR10 could not be loaded in .*(corrupted|not found)"):
        open_images("cifar10")
    assert not Path("it-ran").exists()
    pickle.loads(pickle.dumps(Hostile()))
    assert Path("it-ran").exists(), "the pickle is harmless, so that nothing is tested"


def test_a_folder_of_that_name_wins(cache: Path) -> None:
    write_image(Path("dtd") / "mine" / "1.png")
    assert open_images("dtd").paths == ("mine/1.png",)


@pytest.mark.parametrize("name", torchvision_datasets.NAMED)
def test_without_a_network_one_line_within_3_s(name: str, cache: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=rf"the dataset {name}: not in the local cache, and .* cannot be reached; put"):
        open_images(name)
    assert time.perf_counter() - start < 3
    assert not (cache / name).exists()


def test_a_download_that_breaks_off_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(dataset: Any) -> None:
        (Path(dataset.root) / "dtd" / "dtd").mkdir(parents=True)  # what torchvision takes for the whole dataset
        raise URLError("reset by peer")

    monkeypatch.setattr(torchvision_datasets, "require_network", lambda *arguments: None)
    monkeypatch.setattr(datasets.DTD, "_download", broken)
    for _ in range(2):
        with pytest.raises(UserError, match="reset by peer"):
            open_images("dtd")
        assert list(cache.iterdir()) == []


def test_a_download_becomes_a_dataset_without_its_archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(dataset: Any) -> None:
        root = Path(dataset.root)
        if not (root / "dtd").exists():
            dtd(root, monkeypatch)
            (root / "dtd" / "dtd-r1.0.1.tar.gz").write_bytes(b"archive")

    monkeypatch.setattr(torchvision_datasets, "require_network", lambda *arguments: None)
    monkeypatch.setattr(datasets.DTD, "_download", download)
    table = open_images("dtd")
    assert len(table) == 6 and table.read(0).dtype == torch.uint8
    assert not list(cache.rglob("*.gz"))
    assert [path.name for path in cache.iterdir()] == ["dtd"]
