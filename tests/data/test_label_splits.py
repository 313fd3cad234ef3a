"""Splits of images with several labels: every part has its share of every label, and groups stay together."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from transferkit.data.image_table import ImageTable
from transferkit.data.label_splits import deal_labels
from transferkit.data.splits import assign_fold, assign_splits, few_shot, select_classes
from transferkit.data.targets import TARGETS, joined_labels
from transferkit.errors import UserError

SHARES = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.03}


def images(rows: int = 400, seed: int = 0, groups: int = 0) -> ImageTable:
    noise = np.random.default_rng(seed)
    labels = [joined_labels(name for name, share in SHARES.items() if noise.random() < share) for _ in range(rows)]
    names = tuple(f"g{noise.integers(groups)}" for _ in range(rows)) if groups else None
    paths = tuple(f"{row:04d}.png" for row in range(rows))
    return ImageTable("", paths, tuple(labels), (None,) * rows, groups=names, kind="labels")


def counts(table: ImageTable, split: str) -> dict[str, int]:
    return TARGETS["labels"].counts(
        label for label, own in zip(table.labels, table.splits, strict=True) if own == split
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_split_has_its_share_of_every_label(seed: int) -> None:
    table = assign_splits(images(seed=seed), 0.2, 0.1, seed)
    total = TARGETS["labels"].counts(table.labels)
    for split, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        found = counts(table, split)
        assert list(table.splits).count(split) == pytest.approx(share * 400, abs=3)
        for name, count in total.items():
            assert found.get(name, 0) == pytest.approx(share * count, abs=2), (split, name)


def test_the_draw_depends_on_paths_and_seed_alone() -> None:
    table = images(200)
    drawn = assign_splits(table, 0.2, 0.0, 0)
    assert assign_splits(table, 0.2, 0.0, 0).splits == drawn.splits
    assert assign_splits(table, 0.2, 0.0, 1).splits != drawn.splits
    first = assign_splits(table, 0.0, 0.2, 0)  # the last part is drawn first, whichever others there are
    test = {path for path, split in zip(first.paths, first.splits, strict=True) if split == "test"}
    both = assign_splits(table, 0.1, 0.2, 0)
    assert test == {path for path, split in zip(both.paths, both.splits, strict=True) if split == "test"}


def test_folds_have_every_label_and_each_image_once() -> None:
    table = images(200)
    folds = [assign_fold(table, 4, fold, 0) for fold in range(4)]
    tested = Counter(
        path for fold in folds for path, split in zip(fold.paths, fold.splits, strict=True) if split == "val"
    )
    assert set(tested.values()) == {1}
    total = TARGETS["labels"].counts(table.labels)
    for fold in folds:
        found = counts(fold, "val")
        assert all(found.get(name, 0) == pytest.approx(count / 4, abs=2) for name, count in total.items())


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_train_has_every_label(seed: int) -> None:
    table = assign_splits(images(seed=seed, groups=40), 0.2, 0.2, seed)
    assert table.groups is not None
    sides: dict[str | None, set[str | None]] = {}
    for group, split in zip(table.groups, table.splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    assert counts(table, "train").keys() == TARGETS["labels"].counts(table.labels).keys()


def test_the_rarest_label_is_dealt_first() -> None:
    """A worked example: each half gets one with the rare label; then 3 goes where `a` lacks, 4 where rows lack."""
    units = {"1": ["rare", "a"], "2": ["rare"], "3": ["a"], "4": ["a"]}
    dealt = deal_labels(
        {unit: Counter(labels) for unit, labels in units.items()}, dict.fromkeys(units, 1), [0.5, 0.5], str.encode
    )
    assert dealt == {"1": 0, "2": 1, "3": 1, "4": 0}


def test_few_images_of_every_label() -> None:
    table = replace(images(), splits=("train",) * 400)
    kept, warning = few_shot(table, 5, 0)
    found = TARGETS["labels"].counts(kept.labels)
    assert warning is None and all(found[name] >= 5 for name in SHARES) and len(kept) <= 5 * len(SHARES)


def test_what_is_for_classes_is_refused() -> None:
    with pytest.raises(UserError, match="`classes` needs one class per image, not several labels"):
        select_classes(images(10), ["a"])
    numbers = ImageTable("", ("a", "b"), ("1.0", "2.0"), (None, None), kind="number")
    with pytest.raises(UserError, match="`n_per_class` needs one class per image, not a number"):
        few_shot(numbers, 1, 0)


def test_numbers_are_drawn_from_the_whole_range() -> None:
    values = np.random.default_rng(0).normal(size=200)
    table = ImageTable("", tuple(f"{row:03d}" for row in range(200)), tuple(map(repr, values.tolist())), (None,) * 200,
                       kind="number")  # fmt: skip
    drawn = assign_splits(table, 0.2, 0.0, 0)
    val = [float(label or 0) for label, split in zip(drawn.labels, drawn.splits, strict=True) if split == "val"]
    assert len(val) == 40
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(val, quantile) == pytest.approx(np.quantile(values, quantile), abs=0.2)
