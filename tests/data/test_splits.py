"""Splits against brute-force counts; what they may depend on and what not."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.data.splits import (
    HELD_OUT,
    assign_splits,
    few_shot,
    load_splits,
    save_splits,
    select_classes,
    stratified_split,
)
from transferkit.errors import UserError
from transferkit.probe.row_splits import split_rows


def table_of(counts: dict[str, int], split: str | None = None) -> ImageTable:
    names = sorted((f"{label}/{number:03d}.png", label) for label, count in counts.items() for number in range(count))
    paths, labels = zip(*names, strict=True)
    return ImageTable("/data", paths, labels, (split,) * len(paths), "photos")


def counts(table: ImageTable) -> Counter[tuple[str | None, str | None]]:
    return Counter(zip(table.labels, table.splits, strict=True))


@pytest.mark.parametrize("fractions", [[0.2], [0.15, 0.3], [0.0, 0.5], [0.001], [0.3, 0.3, 0.3]])
def test_every_class_is_split_in_proportion(fractions: list[float]) -> None:
    draw = random.Random(1)
    sizes = {f"class{size}": size for size in [1, 2, 3, 4, 5, 7, 10, 33, 100, 999]}
    labels = [label for label, size in sizes.items() for _ in range(size)]
    draw.shuffle(labels)
    parts = stratified_split(labels, fractions, seed=0)
    assert len(parts) == len(labels)
    for label, size in sizes.items():
        mine = [part for part, name in zip(parts, labels, strict=True) if name == label]
        assert mine.count(0) >= 1
        for part, fraction in enumerate(fractions, start=1):
            if fraction == 0:
                assert mine.count(part) == 0
            elif size > len(fractions):
                assert mine.count(part) >= 1
                # Rounding moves at most half a row; a share below one row is rounded up to one.
                assert abs(mine.count(part) - size * fraction) <= max(0.5, 1 - size * fraction)


def test_a_small_class_fills_val_before_test() -> None:
    split = assign_splits(table_of({"one": 1, "two": 2, "three": 3}), 0.2, 0.2, seed=0)
    assert counts(split) == {
        ("one", "train"): 1,
        ("two", "train"): 1,
        ("two", "val"): 1,
        ("three", "train"): 1,
        ("three", "val"): 1,
        ("three", "test"): 1,
    }


def test_the_draw_depends_on_seed_and_paths_and_not_on_row_order_or_other_classes() -> None:
    table = table_of({"a": 40, "b": 25, "c": 11})
    first = stratified_split(table.labels, [0.2, 0.1], seed=3, keys=table.paths)
    assert first == stratified_split(table.labels, [0.2, 0.1], seed=3, keys=table.paths)
    assert first != stratified_split(table.labels, [0.2, 0.1], seed=4, keys=table.paths)
    order = list(range(len(table)))
    random.Random(0).shuffle(order)
    shuffled = stratified_split(
        [table.labels[row] for row in order], [0.2, 0.1], seed=3, keys=[table.paths[row] for row in order]
    )
    assert shuffled == [first[row] for row in order]
    whole = assign_splits(table, 0.2, 0.1, seed=3)
    alone = assign_splits(select_classes(table, ["b"]), 0.2, 0.1, seed=3)
    assert alone == select_classes(whole, ["b"])


def test_every_row_is_drawn_about_equally_often() -> None:
    hits = Counter[int]()
    for seed in range(400):
        hits.update(row for row, part in enumerate(stratified_split(["x"] * 10, [0.3], seed)) if part)
    # Binomial(400, 0.3): mean 120, standard deviation 9.2.
    assert all(abs(hits[row] - 120) < 4 * 9.2 for row in range(10))


def test_given_splits_are_kept() -> None:
    table = table_of({"a": 10, "b": 10})
    given = replace(table, splits=("val",) * 5 + ("train",) * 5 + (None,) * 10)
    result = assign_splits(given, 0.5, 0.2, seed=0)
    assert result.splits[:5] == ("val",) * 5
    assert "val" not in result.splits[5:], "val was given, so none is drawn"
    assert counts(result) == {
        ("a", "val"): 5,
        ("a", "train"): 4,
        ("a", "test"): 1,
        ("b", "train"): 8,
        ("b", "test"): 2,
    }
    complete = replace(table, splits=("train",) * 5 + ("val",) * 5 + ("test",) * 10)
    assert assign_splits(complete, 0.5, 0.5, seed=0) == complete


def test_images_without_labels_are_split_too() -> None:
    table = ImageTable("/data", tuple(f"{row:02d}.png" for row in range(20)), (None,) * 20, (None,) * 20)
    assert Counter(assign_splits(table, 0.25, 0.0, seed=0).splits) == {"train": 15, "val": 5}


@pytest.mark.parametrize("fractions", [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5), (float("nan"), 0.0)])
def test_fractions_that_leave_no_training_images(fractions: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="leave nothing to train on"):
        assign_splits(table_of({"a": 4}), *fractions, seed=0)


def test_few_shot_keeps_n_of_each_class_and_leaves_val_and_test_alone() -> None:
    table = assign_splits(table_of({"a": 40, "b": 25, "c": 3}), 0.2, 0.2, seed=0)
    before = counts(table)
    small, warning = few_shot(table, 4, seed=0)
    assert warning == "fewer than `n_per_class=4` training images: 'c' has 1; all are used"
    assert counts(small) == {key: min(n, 4) if key[1] == "train" else n for key, n in before.items()}
    assert few_shot(table, 1, seed=0)[1] is None
    assert few_shot(table, 4, seed=0)[0] == small
    assert few_shot(table, 4, seed=1)[0] != small
    assert set(few_shot(table, 2, seed=0)[0].paths) < set(small.paths)
    with pytest.raises(UserError, match="`n_per_class` is 0"):
        few_shot(table, 0, seed=0)


def test_select_classes() -> None:
    table = table_of({"ants": 3, "bees": 2, "wasps": 4})
    chosen = select_classes(table, ["wasps", "ants"])
    assert chosen.class_names == ["ants", "wasps"]
    assert len(chosen) == 7
    with pytest.raises(UserError, match="no class 'bee' in 'photos'; the nearest is 'bees'"):
        select_classes(table, ["ants", "bee"])
    with pytest.raises(UserError, match="no class 'x' in 'photos'; its images have no labels"):
        select_classes(replace(table, labels=(None,) * 9), ["x"])


def test_splits_are_recorded_and_repeated(tmp_path: Path) -> None:
    table = table_of({"a": 9, "b": 9})
    used, _ = few_shot(assign_splits(table, 0.3, 0.0, seed=5), 3, seed=5)
    save_splits(used, tmp_path / "splits.parquet")
    stored = pq.read_table(tmp_path / "splits.parquet")
    assert stored.schema.names == ["path", "label", "split"]
    assert stored["split"].to_pylist() == list(used.splits)
    assert load_splits(table, tmp_path / "splits.parquet") == used
    assert [path.name for path in tmp_path.iterdir()] == ["splits.parquet"]


def test_recorded_splits_that_no_longer_fit(tmp_path: Path) -> None:
    table = table_of({"a": 3, "b": 3}, split="train")
    file = tmp_path / "splits.parquet"
    save_splits(table, file)
    with pytest.raises(UserError, match=r"'a/000.png' with label 'a'.*is no longer in 'photos'; put it back"):
        load_splits(table.select(range(1, 6)), file)
    with pytest.raises(UserError, match=r"'b/002\.png' with label 'b'"):
        load_splits(replace(table, labels=(*table.labels[:5], "c")), file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot read the splits"):
        load_splits(table, file)
    pq.write_table(pa.table({"path": ["a/000.png"]}), file)
    with pytest.raises(UserError, match="cannot read the splits"):
        load_splits(table, file)
    with pytest.raises(UserError, match="cannot read the splits"):
        load_splits(table, tmp_path / "gone.parquet")
    with pytest.raises(UserError, match="cannot write"):
        save_splits(table, tmp_path)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_part_is_the_same_whichever_others_are_drawn(seed: int) -> None:
    """What a probe reports on (a fifth) is what a fit holds out, as val or, where there is one, as test."""
    table = table_of({"a": 40, "b": 25, "c": 11})
    held_out = {
        path
        for path, split in zip(table.paths, assign_splits(table, HELD_OUT, 0.0, seed).splits, strict=True)
        if split == "val"
    }
    for val in (0.0, 0.1, 0.3):
        drawn = assign_splits(table, val, HELD_OUT, seed)
        assert {path for path, split in zip(table.paths, drawn.splits, strict=True) if split == "test"} == held_out
    embeddings = Embeddings(torch.eye(len(table)), table.paths, table.labels, table.splits, {})
    parts = split_rows(embeddings, val_fraction=0.15, test_fraction=HELD_OUT, seed=seed)
    assert {table.paths[row] for row in parts.test} == held_out
