"""Images that Python holds as a table: lists, pairs, datasets, own splits and transforms; the pixels of the files."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor, v2

from tests.extractor.examples import transformer
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.memory_table import MemoryTable, table_of_images
from transferkit.embed import embed
from transferkit.errors import UserError

NAMES = ["apples"] * 6 + ["limes"] * 6


@pytest.fixture
def paths(photo_folder: Path) -> list[Path]:
    return sorted((photo_folder / "train").rglob("*.*"))


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def forms(paths: list[Path]) -> dict[str, Any]:
    """The labeled images in every form that holds labels."""
    columns = {"image": list(map(str, paths)), "label": [0] * 6 + [1] * 6}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    tensors = torch.stack([ToTensor()(Image.open(path)) for path in paths])
    return {
        "pairs": list(zip(paths, NAMES, strict=True)),
        "torchvision": ImageFolder(paths[0].parents[1]),
        "hugging face": table.cast_column("label", datasets.ClassLabel(names=["apples", "limes"])),
        "tensors": TensorDataset(tensors, torch.tensor(columns["label"])),
    }


def test_every_form_has_the_pixels_and_labels_of_the_files(paths: list[Path]) -> None:
    for name, form in forms(paths).items():
        table = table_of_images(form)
        labels = ("0",) * 6 + ("1",) * 6 if name == "tensors" else tuple(NAMES)
        assert table.labels == labels, name
        for row in (0, 5, 11):
            assert np.array_equal(table.read(row).permute(1, 2, 0).numpy(), read(paths[row])), name
        assert len(set(table.stamps())) == 12 and table.stamps() == table.select(range(12)).stamps()
        assert np.array_equal(table.select([7]).read(0).permute(1, 2, 0).numpy(), read(paths[7])), name


def test_what_is_in_memory_is_embedded_like_the_files(paths: list[Path]) -> None:
    extractor = transformer("vit", "cls")
    files = embed(paths[0].parents[1], extractor)
    held = embed([read(path) for path in paths], extractor)
    torch.testing.assert_close(held.embedding, files.embedding, atol=1e-5, rtol=0)
    assert held.paths == [f"{row:07d}" for row in range(12)]


def test_one_s_own_split_function_decides(paths: list[Path]) -> None:
    def split(paths: Any, labels: Any) -> list[str]:
        return ["val" if row % 3 == 0 else "test" if row % 3 == 1 else "train" for row in range(len(paths))]

    for images in (paths[0].parents[1], [read(path) for path in paths]):
        data = ImageDataModule.from_images(images, NAMES, split=split)
        data.setup("fit")
        assert {name: len(table) for name, table in data.tables.items()} == {"train": 4, "val": 4, "test": 4}
        assert data.tables["val"].paths == data.open().paths[::3]
    data = ImageDataModule.from_images(paths, NAMES, splits=["train", "val"] * 6)
    data.setup("fit")
    assert data.tables["val"].labels == tuple(NAMES[1::2]) and "/" in data.tables["val"].paths[0]


def test_one_s_own_transform_changes_training_images_only(paths: list[Path]) -> None:
    seen: list[Tensor] = []

    def transform(image: Tensor) -> Tensor:
        seen.append(image)
        return v2.RandomErasing(p=1.0)(image)

    data = ImageDataModule.from_images(
        paths, NAMES, splits=["train", "val"] * 6, transform=transform, num_workers=0, batch_size=6
    )
    data.setup("fit")
    assert not data.caches_features
    plain = data.preprocessing.resize_crop
    train, again = (next(iter(data.train_dataloader()))["pixels"] for _ in range(2))
    assert torch.equal(train, again), "the draw depends on seed, epoch and row"
    assert len(seen) == 12 and not any(
        torch.equal(pixels, plain(image)) for pixels, image in zip(train, seen, strict=False)
    )
    for pixels, image in zip(next(iter(data.val_dataloader()))["pixels"], paths[1::2], strict=True):
        assert torch.equal(pixels, plain(torch.from_numpy(read(image)).permute(2, 0, 1)))
    assert len(seen) == 12
    for result in (transform, lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()), lambda image: image / 255):
        data.transform = result
        assert next(iter(data.train_dataloader()))["pixels"].dtype == torch.uint8
    data.transform = lambda image: image.float() - 100
    with pytest.raises(
        UserError, match=r"transform gives no image: .* outside 0\.\.1; .*leave normalizing to the model"
    ):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"labels": ["a"]}, "labels: 1 for 12 images; give one per image"),
        ({"splits": ["train"]}, "splits: 1 for 12 images"),
        ({"splits": ["dev"] * 12}, "splits has 'dev'; give 'train', 'val', 'test' or None"),
        ({"splits": [None] * 12, "split": lambda paths, labels: [None] * 12}, "splits and split are given"),
        ({"transform": abs, "augmentation": "light"}, "`augmentation` and transform are given"),
        ({"batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(paths: list[Path], arguments: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        ImageDataModule.from_images(paths, **arguments)


MISSING: dict[str, Any] = {
    "a list": ["a", "b", None],
    "NaN": ["a", "b", float("nan")],
    "NumPy": np.array(["a", "b", np.nan], dtype=object),
    "numbers": np.array([0, 1, np.nan], np.float32),
    "a tensor": torch.tensor([0, 1, torch.nan]),
    "pandas": pd.Series(["a", "b", None]),
    "pandas, text": pd.Series(["a", "b", None], dtype="string"),
    "pandas, dates": pd.Series([pd.Timestamp(0), pd.Timestamp(1), pd.NaT]),
    "Arrow": pa.array(["a", "b", None]),
    "empty": ["a", "b", ""],
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_label_is_not_a_class(paths: list[Path], kind: str) -> None:
    with pytest.raises(UserError, match=r"^labels: item 2 is missing; give a class, or leave the image out$"):
        table_of_images(paths[:3], MISSING[kind])
    assert table_of_images(paths[:3], MISSING[kind], ["train", None, "test"]).labels[2] is None
    pairs = list(zip(paths[:3], MISSING[kind], strict=True))
    assert table_of_images(pairs).labels[2] is None


def test_what_looks_like_missing_but_is_text_or_a_number_is_a_class(paths: list[Path]) -> None:
    assert table_of_images(paths[:4], ["nan", "None", 0, False]).labels == ("nan", "None", "0", "False")
    assert table_of_images(paths[:2], torch.tensor([3, 10])).labels == ("3", "10")


def test_a_series_is_read_in_its_order(paths: list[Path]) -> None:
    series = pd.Series(paths[:3], index=[2, 0, 1])
    table = table_of_images(series, pd.Series(["a", "b", "c"], index=[2, 0, 1]))
    assert table.labels == ("a", "b", "c")
    for row, path in enumerate(paths[:3]):
        assert np.array_equal(table.read(row).permute(1, 2, 0).numpy(), read(path))


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`images` is empty"):
        table_of_images([])
    with pytest.raises(UserError, match="`images`: item 1 cannot be read as an image: not an image"):
        table_of_images([np.zeros((4, 4, 3), np.uint8), b"no picture"])


def test_a_folder_stays_a_folder(photo_folder: Path) -> None:
    table = table_of_images(photo_folder)
    assert table == open_images(photo_folder) and type(table) is ImageTable
    held = table_of_images([np.zeros((4, 4, 3), np.uint8)], ["é"])
    assert type(held) is MemoryTable and held.labels == ("é",)


def test_own_labels_and_splits_keep_the_groups_and_the_folder_of_a_manifest(tmp_path: Path, paths: list[Path]) -> None:
    manifest = tmp_path / "elsewhere/images.csv"
    manifest.parent.mkdir()
    names = [path.relative_to(paths[0].parents[1]).as_posix() for path in paths]
    manifest.write_text("path,group\n" + "".join(f"{name},{row // 3}\n" for row, name in enumerate(names)))
    data = ImageDataModule.from_images(manifest, NAMES, image_root=str(paths[0].parents[1]), val_fraction=0.5)
    data.setup("fit")
    train, val = data.tables["train"], data.tables["val"]
    assert train.groups and val.groups and not set(train.groups) & set(val.groups)
    assert np.array_equal(train.read(0).permute(1, 2, 0).numpy(), read(paths[names.index(train.paths[0])]))
    given = table_of_images(manifest, NAMES, ["train"] * 12, image_root=str(paths[0].parents[1]))
    assert given.groups == tuple(str(row // 3) for row in range(12))


def test_an_iterator_of_pairs_keeps_its_labels(paths: list[Path]) -> None:
    labels = [path.parent.name for path in paths]
    for given in (zip(paths, labels, strict=True), list(zip(paths, labels, strict=True))):
        assert list(table_of_images(given).labels) == labels
    assert set(table_of_images(iter(paths)).labels) == {None}
    assert list(table_of_images(zip(paths, labels, strict=True), ["x"] * len(paths)).labels) == ["x"] * len(paths)
