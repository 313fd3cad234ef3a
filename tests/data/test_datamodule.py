import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from transferkit.data.datamodule import FEATURE_BATCH, ImageDataModule
from transferkit.data.splits import save_splits
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing

SMALL = Preprocessing.imagenet().replace(resize=[16, 16], crop=[16, 16])


def ready(root: Path | str, stage: str = "fit", **options: Any) -> ImageDataModule:
    data = ImageDataModule(str(root), **{"num_workers": 0, **options})
    data.preprocessing = SMALL
    data.setup(stage)
    return data


def sizes(data: ImageDataModule) -> dict[str, int]:
    return {name: len(table) for name, table in data.tables.items()}


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Classes a, b and c of 10, 6 and 4 images, without splits."""
    for label, count in {"a": 10, "b": 6, "c": 4}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.randint(0, 256, (20, 24, 3), np.uint8)  # (H, W, 3)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def manifest(tmp_path: Path, class_folder: Path) -> Callable[[dict[str, tuple[str, str]]], Path]:
    """Writes a manifest of path -> label and split."""

    def write(rows: dict[str, tuple[str, str]]) -> Path:
        with (tmp_path / "list.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            writer.writerows([f"images/{path}", *row] for path, row in rows.items())
        return tmp_path / "list.csv"

    return write


def test_no_data() -> None:
    with pytest.raises(UserError, match=r"`root=DIR`"):
        ready("")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 0), ("num_workers", -1), ("views", -1), ("n_per_class", 0)),
        *(("val_fraction", 1.0), ("val_fraction", -0.1), ("test_fraction", 1.5), ("test_fraction", float("nan"))),
    ],
)
def test_numbers_that_there_cannot_be(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"`{name}` is {value}; give"):
        ImageDataModule("digits", **{name: value})  # type: ignore[arg-type]


def test_splits_are_drawn_once(class_folder: Path) -> None:
    data = ready(class_folder, val_fraction=0.25, test_fraction=0.25)
    assert sizes(data) == {"train": 10, "val": 5, "test": 5}
    before = dict(data.tables)
    data.setup("fit")
    data.setup("test")
    assert data.tables == before
    assert ready(class_folder, val_fraction=0.25, test_fraction=0.25).tables == before
    assert ready(class_folder, val_fraction=0.25, test_fraction=0.25, split_seed=1).tables != before


def test_predict_leaves_the_splits_alone(photo_folder: Path) -> None:
    data = ready(photo_folder)
    data.setup("predict")
    data.setup("validate")
    assert sizes(data) == {"train": 12, "val": 12, "predict": 24}


def test_recorded_splits_are_repeated(class_folder: Path, tmp_path: Path) -> None:
    first = ready(class_folder, n_per_class=3, split_seed=5)
    save_splits(first.table, tmp_path / "splits.parquet")
    again = ready(class_folder, splits=str(tmp_path / "splits.parquet"))
    assert again.tables == first.tables
    subset = ready(class_folder, "validate", splits=str(tmp_path / "splits.parquet"), classes=["a", "c"])
    assert set(subset.tables["val"].labels) == {"a", "c"}


def test_few_shot_and_classes(class_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ready(class_folder, n_per_class=4, classes=["a", "c"])
    assert data.class_names == ["a", "c"]
    labels = data.tables["train"].labels
    assert (labels.count("a"), labels.count("c")) == (4, 3)
    assert "'c' has 3" in caplog.text
    assert sizes(data)["val"] == 3


def test_no_validation_images(class_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no images for the split 'val' .*`val_fraction` above 0"):
        ready(class_folder, val_fraction=0.0)


@pytest.mark.parametrize(("stage", "split"), [("validate", "val"), ("test", "test")])
def test_data_of_its_own_is_evaluated_as_a_whole(class_folder: Path, stage: str, split: str) -> None:
    assert sizes(ready(class_folder, stage)) == {split: 20}


def test_data_of_its_own_with_splits(photo_folder: Path) -> None:
    data = ready(photo_folder, "test")
    assert data.test_split == "val" and sizes(data)["val"] == 12


def test_evaluation_needs_labels(photo_folder: Path) -> None:
    flat = photo_folder / "val" / "limes"
    with pytest.raises(UserError, match=r"6 of 6 images .*no label; .*use predict, which needs none"):
        ready(flat, "test")
    assert sizes(ready(flat, "predict")) == {"predict": 6}


def test_classes_of_a_trained_head(class_folder: Path) -> None:
    data = ready(class_folder, "test", classes=["c", "a"])
    data.set_class_names(["d", "c", "b", "a"])
    assert data.targets("test").bincount().tolist() == [0, 4, 0, 10]
    with pytest.raises(UserError, match="classes the checkpoint was not trained on: a; it knows b, c"):
        data.set_class_names(["b", "c"])


def test_labels_do_not_matter_for_predictions(class_folder: Path) -> None:
    data = ready(class_folder, "predict")
    data.set_class_names(["b"])
    assert data.targets("predict").unique().tolist() == [-1, 0]


def test_balanced_weights_are_scikit_learns(class_folder: Path) -> None:
    data = ready(class_folder, class_weights="balanced")
    labels = data.tables["train"].labels
    weights = data.loss_weights()
    assert weights is not None and weights.dtype == torch.float32
    wanted = compute_class_weight("balanced", classes=np.array(data.class_names), y=labels)
    np.testing.assert_allclose(weights.numpy(), wanted, rtol=1e-6)


def test_given_weights(class_folder: Path) -> None:
    data = ready(class_folder, class_weights=[1, 2.5, 0])
    weights = data.loss_weights()
    assert weights is not None and (weights / weights[0]).tolist() == pytest.approx([1, 2.5, 0])
    assert weights[data.targets("train")].mean().item() == pytest.approx(1)  # whatever the scale they are given in
    with pytest.raises(UserError, match=r"`class_weights` has 2 numbers for 3 classes; give one for each of a, b, c"):
        ready(class_folder, class_weights=[1.0, 2.0]).loss_weights()
    assert ready(class_folder).loss_weights() is None


def test_class_in_val_that_train_lacks(manifest: Callable[..., Path]) -> None:
    rows = {"a/0.png": ("a", "train"), "b/0.png": ("b", "train"), "c/0.png": ("c", "val")}
    with pytest.raises(UserError, match="class 'c' is in val but not in train"):
        ready(manifest(rows))


def test_labels_missing_in_a_manifest(manifest: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="labels are missing for 1 of 3 images"):
        ready(manifest({"a/0.png": ("a", "train"), "a/1.png": ("", "train"), "b/0.png": ("b", "train")}))


def test_broken_images_are_all_named_or_skipped(class_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/0.png", "b/5.png"):
        (class_folder / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 broken images: 'a/0.png': .*; 'b/5.png': "):
        ready(class_folder).check_images(("train", "val"))
    data = ready(class_folder, on_error="skip")
    data.check_images(("train", "val"))
    assert sum(sizes(data).values()) == 18
    assert "skipped 2 unreadable images of train and val: 'a/0.png', 'b/5.png'" in caplog.text
    assert not {"a/0.png", "b/5.png"} & {path for table in data.tables.values() for path in table.paths}


def test_a_class_without_a_readable_image(class_folder: Path) -> None:
    data = ready(class_folder, on_error="skip", val_fraction=0.1)
    broken = {path: "empty" for path in data.tables["train"].paths if path.startswith("c")}
    with pytest.raises(UserError, match="no readable training image is left of c"):
        data.check_broken(broken)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": 2}, True),
        ({"views": 2, "augmentation": "light", "cache": "off"}, True),
        ({"views": 2, "augmentation": "light"}, False),
        ({}, False),
    ],
)
def test_views_without_effect_are_said(
    photo_folder: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], said: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        ready(photo_folder, **options)
    assert ("`views=2` has no effect" in caplog.text) is said


@pytest.mark.parametrize(
    ("options", "cached"),
    [
        ({}, True),
        ({"cache": "off"}, False),
        ({"augmentation": "light"}, False),
        ({"augmentation": "light", "views": 2}, True),
        ({"augmentation": "light", "views": 2, "cache": "off"}, False),
    ],
)
def test_when_features_are_cached(options: dict[str, Any], cached: bool) -> None:
    assert ImageDataModule("digits", **options).caches_features is cached


def test_workers_fit_the_machine(photo_folder: Path) -> None:
    assert ready("digits").workers() == 0
    assert ready(photo_folder, num_workers=3).workers() == 3
    assert 1 <= ready(photo_folder, num_workers=None).workers() <= 8
    assert ready("digits", num_workers=None).workers() == 0  # nothing to decode


def test_few_images_train_in_small_batches(photo_folder: Path) -> None:
    data = ready(photo_folder, batch_size=None)
    assert [len(batch["row"]) for batch in data.train_dataloader()] == [4, 4, 4]
    assert [len(batch["row"]) for batch in data.val_dataloader()] == [12], "what learns nothing takes batches of 32"
    assert [len(batch["row"]) for batch in ready(photo_folder, batch_size=32).train_dataloader()] == [12]


def test_processes_change_no_bit(photo_folder: Path) -> None:
    batches = {}
    for workers in (0, 2):
        data = ready(photo_folder, augmentation="strong", batch_size=5, num_workers=workers)
        loader = data.train_dataloader()
        batches[workers] = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches[workers] += list(loader)
    assert len(batches[0]) == len(batches[2]) == 6
    for one, other in zip(batches[0], batches[2], strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(batches[0][0]["row"], batches[0][3]["row"])  # another epoch, another order


def test_only_training_images_are_augmented(photo_folder: Path) -> None:
    data = ready(photo_folder, augmentation="strong")
    table, plain = data.tables["val"], next(iter(data.val_dataloader()))
    assert plain["row"].tolist() == list(range(12))
    assert torch.equal(plain["pixels"], torch.stack([SMALL.resize_crop(table.read(row)) for row in range(12)]))
    batch = next(iter(data.train_dataloader()))
    row = int(batch["row"][0])
    assert not torch.equal(batch["pixels"][0], SMALL.resize_crop(data.tables["train"].read(row)))


def test_cached_features_need_no_pixels(photo_folder: Path) -> None:
    data = ready(photo_folder, batch_size=5, num_workers=2)
    data.features = {"train": [torch.rand(12, 4)], "val": [torch.rand(12, 4)]}
    train, val = data.train_dataloader(), data.val_dataloader()
    assert train.num_workers == 0 and [len(batch["row"]) for batch in train] == [5, 5, 2]
    assert FEATURE_BATCH > 12 and [len(batch["row"]) for batch in val] == [12]
    assert torch.equal(next(iter(val))["embedding"], data.features["val"][0])


def test_a_class_is_known_in_either_of_its_unicode_forms(manifest: Callable[..., Path]) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    data = ready(
        manifest({"a/0.png": ("x", "train"), "b/0.png": (decomposed, "train"), "b/1.png": (decomposed, "val")})
    )
    assert data.class_names == [decomposed, "x"]  # as it is written
    data.set_class_names([composed, "x"])  # of a checkpoint from another file system
    assert data.targets("train").tolist() == [1, 0] and data.targets("val").tolist() == [0]
