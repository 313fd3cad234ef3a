"""The images of a distillation: no labels, test left out, and the view of each epoch with its own targets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.running import write_photos
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.memory_table import table_of_images
from transferkit.embed.stream import View
from transferkit.errors import UserError
from transferkit.training.distill_data import ViewDataset, images_to_relate, readable, without_labels
from transferkit.training.shared_views import Targets

COLORS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}


def pictures(count: int, labels: list[str] | None = None) -> ImageTable:
    noise = np.random.default_rng(0)
    return table_of_images(list(noise.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)), labels)


def test_labels_change_nothing() -> None:
    some, others = pictures(40, ["a", "b"] * 20), pictures(40, ["a"] * 39 + ["b"])
    splits = {without_labels(table, 0.25, seed=3).splits for table in (some, others, pictures(40))}
    assert len(splits) == 1 and splits.pop().count("val") == 10
    assert set(without_labels(some, 0.25, seed=3).labels) == {None}


def test_given_splits_are_kept_and_test_is_left_out(tmp_path: Path) -> None:
    write_photos(tmp_path, COLORS, {"train": 3, "val": 2, "test": 2})
    table = without_labels(open_images(tmp_path), 0.5, seed=0)
    assert table.splits.count("train") == 6 and table.splits.count("val") == 4
    assert not any(path.startswith("test") for path in table.paths)


def test_too_few_images_are_one_line() -> None:
    with pytest.raises(UserError, match="has 1 images of train; give 2 or more"):
        without_labels(pictures(2), 0.5, seed=0)


def test_unreadable_images_are_named_or_left_out(tmp_path: Path) -> None:
    write_photos(tmp_path, COLORS, {"train": 2})
    (tmp_path / "train/apples/broken.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        readable(open_images(tmp_path), "fail")
    assert len(readable(open_images(tmp_path), "skip")) == 4


def test_a_batch_has_the_view_of_its_epoch_with_its_own_targets() -> None:
    table = pictures(6)
    views = [View(str(number), lambda image, row, n=number: image // 2**n) for number in range(2)]  # type: ignore[misc]
    targets = [Targets(torch.randn(6, 3), torch.randn(6, 4, 2)) for _ in views]
    for epoch in range(4):
        batch = ViewDataset(table, views, targets)[(epoch, [4, 1], 1.0)]
        assert torch.equal(batch["row"], torch.tensor([4, 1]))
        assert torch.equal(batch["pixels"], torch.stack([table.read(row) // 2 ** (epoch % 2) for row in (4, 1)]))
        assert torch.equal(batch["teacher"], targets[epoch % 2].embedding[[4, 1]])
        assert torch.equal(batch["patches"], targets[epoch % 2].patches[[4, 1]])


def test_the_images_to_relate_to_are_drawn_once() -> None:
    rows = torch.arange(20.0)[:, None]
    few = images_to_relate(rows, 5, seed=0)
    assert torch.equal(few, images_to_relate(rows, 5, seed=0)) and len(few.unique()) == 5
    assert not torch.equal(few, images_to_relate(rows, 5, seed=1))
    assert torch.equal(images_to_relate(rows, 99, seed=0), rows)
