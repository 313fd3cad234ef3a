"""Groups: never on two sides, wherever sides are drawn; stratified as well as scikit-learn does it; bad input."""

import logging
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.data.groups import deal, fold_units, units_of
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.splits import assign_fold, assign_splits, few_shot
from transferkit.data.targets import Kind, joined_labels
from transferkit.errors import UserError
from transferkit.probe.audit import nearest
from transferkit.probe.audit_files import write_manifest
from transferkit.probe.fold_tables import fold_tables
from transferkit.probe.out_of_fold import assign_folds
from transferkit.probe.row_splits import split_members, split_rows
from transferkit.similarity import unit_rows


def drawn_table(seed: int) -> ImageTable:
    """Images in groups of one to twelve, most of one class, some of several; every tenth image is by itself."""
    draw = random.Random(seed)
    rows: list[tuple[str, str | None]] = []
    for number in range(draw.randint(12, 60)):
        size = draw.choice([1, 1, 2, 3, 5, 12])
        main = draw.choice("abc")
        for _ in range(size):
            rows.append((draw.choice("abc") if draw.random() < 0.1 else main, f"g{number}"))
    rows = [(label, None if draw.random() < 0.1 else group) for label, group in rows]
    paths = tuple(f"{row:04d}.png" for row in range(len(rows)))
    return ImageTable(
        "/data", paths, tuple(r[0] for r in rows), (None,) * len(rows), "photos", groups=tuple(r[1] for r in rows)
    )


def leaks(groups: Sequence[str | None] | None, sides: Sequence[Hashable]) -> list[str]:
    """Groups on two sides, counted the long way."""
    assert groups is not None
    of = {group: {side for g, side in zip(groups, sides, strict=True) if g == group} for group in groups if group}
    return [group for group, on in of.items() if len(on) > 1]


@pytest.mark.parametrize("seed", range(25))
def test_no_group_is_on_two_sides_wherever_sides_are_drawn(seed: int) -> None:
    table = drawn_table(seed)
    split = assign_splits(table, 0.2, 0.15, seed)
    assert leaks(split.groups, split.splits) == []
    small, _ = few_shot(split, 3, seed)
    assert leaks(small.groups, small.splits) == []
    for given in (table, split, replace(split, splits=tuple("val" if s == "val" else "train" for s in split.splits))):
        rows = torch.randn(len(table), 4, generator=torch.Generator().manual_seed(seed))
        embeddings = Embeddings(rows, given.paths, given.labels, given.splits, {}, given.groups)
        parts = split_rows(embeddings, val_fraction=0.15, test_fraction=0.2, seed=seed)
        side_of = {row: name for name in ("train", "val", "test") for row in getattr(parts, name).tolist()}
        assert leaks(given.groups, [side_of[row] for row in range(len(table))]) == []
    units = units_of(table.paths, table.groups)
    folds = fold_units(table.labels, units, 4, seed)
    assert leaks(table.groups, folds) == []
    for fold in range(4):  # no fold is judged by a classifier that has not seen its classes
        inside = {label for label, number in zip(table.labels, folds, strict=True) if number == fold}
        assert inside <= {label for label, number in zip(table.labels, folds, strict=True) if number != fold}
    codes = torch.tensor([int(unit.split()[1].strip("g.pn")) + 1000 * unit.startswith("g") for unit in units])
    target = torch.tensor(["abc".index(str(label)) for label in table.labels])
    assert leaks(table.groups, assign_folds(target, codes, 5, seed).tolist()) == []


@pytest.mark.parametrize("kind", ["labels", "number"])
@pytest.mark.parametrize("seed", range(8))
def test_no_group_of_several_labels_or_numbers_is_on_two_sides(seed: int, kind: Kind) -> None:
    table, draw = drawn_table(seed), random.Random(seed)
    several = [f"{label}|{draw.choice('abc')}|{draw.choice('xyz')}" for label in table.labels]
    texts = [joined_labels(label.split("|")) if kind == "labels" else repr(draw.gauss(0, 1)) for label in several]
    table = replace(table, labels=tuple(texts), kind=kind)
    split = assign_splits(table, 0.2, 0.15, seed)
    assert set(split.splits) == {"train", "val", "test"} and leaks(split.groups, split.splits) == []
    for fold in range(3):
        assert leaks(table.groups, assign_fold(table, 3, fold, seed).splits) == []
    if kind == "labels":
        small, _ = few_shot(split, 3, seed)
        assert leaks(small.groups, small.splits) == []
    rows = torch.randn(len(table), 4, generator=torch.Generator().manual_seed(seed))
    for given in (table, split):
        embeddings = Embeddings(rows, given.paths, given.labels, given.splits, {}, given.groups, kind)
        parts = split_members(embeddings, val_fraction=0.15, test_fraction=0.2, seed=seed)
        side_of = {row: name for name in ("train", "val", "test") for row in getattr(parts, name)}
        assert leaks(given.groups, [side_of[row] for row in range(len(table))]) == []
        for inner in fold_tables(embeddings, 3, seed):
            assert leaks(inner.groups, inner.splits) == []


@pytest.mark.parametrize("seed", range(25))
def test_train_has_every_class_and_what_is_held_out_about_its_share(seed: int) -> None:
    table = drawn_table(seed)
    split = assign_splits(table, 0.2, 0.0, seed)
    counts = Counter(zip(table.labels, split.splits, strict=True))
    units = units_of(table.paths, table.groups)
    for label in table.class_names:
        total = counts[label, "train"] + counts[label, "val"]
        assert counts[label, "train"] and counts[label, "val"]
        largest = max(Counter(u for u, name in zip(units, table.labels, strict=True) if name == label).values())
        assert abs(counts[label, "val"] - 0.2 * total) <= largest


def unevenness(labels: Sequence[str | None], folds: Sequence[int], count: int) -> float:
    """Sum over folds and classes of (images - expected)² / expected."""
    found = np.zeros((count, 3))
    for label, fold in zip(labels, folds, strict=True):
        found[fold, "abc".index(str(label))] += 1
    expected = found.sum(0, keepdims=True) / count
    return float(((found - expected) ** 2 / expected).sum())


def test_folds_are_as_even_as_those_of_scikit_learn() -> None:
    ours, theirs = 0.0, 0.0
    for seed in range(20):
        table = drawn_table(seed)
        if min(Counter(table.labels).values()) < 5:
            continue  # scikit-learn warns of too small a class
        units = units_of(table.paths, table.groups)
        ours += unevenness(table.labels, deal(table.labels, units, [0.2] * 5, "x"), 5)
        folds = [0] * len(table)
        oracle = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for fold, (_, held) in enumerate(oracle.split(np.zeros(len(table)), np.array(table.labels), np.array(units))):
            for row in held:
                folds[row] = fold
        theirs += unevenness(table.labels, folds, 5)
    assert 0 < ours <= 1.1 * theirs


def test_the_draw_depends_on_groups_and_seed_and_not_on_row_order() -> None:
    table = drawn_table(3)
    units = units_of(table.paths, table.groups)
    first = deal(table.labels, units, [0.7, 0.3], "salt")
    order = list(range(len(table)))
    random.Random(0).shuffle(order)
    again = deal([table.labels[row] for row in order], [units[row] for row in order], [0.7, 0.3], "salt")
    assert again == [first[row] for row in order]
    assert first != deal(table.labels, units, [0.7, 0.3], "other")
    alone = {p for p, s in zip(table.paths, assign_splits(table, 0.2, 0.0, 0).splits, strict=True) if s == "val"}
    for val in (0.0, 0.1, 0.3):  # what a probe reports on is what a fit holds out
        drawn = assign_splits(table, val, 0.2, 0)
        assert {path for path, split in zip(table.paths, drawn.splits, strict=True) if split == "test"} == alone


def manifest(folder: Path, rows: Sequence[tuple[str, str, str, str]]) -> Path:
    file = folder / "m.csv"
    file.write_text("path,label,split,group\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return file


def rows_of(*groups: tuple[str, str, int], split: str = "") -> list[tuple[str, str, str, str]]:
    return [(f"{g}-{n}.png", label, split, g) for g, label, count in groups for n in range(count)]


def test_a_manifest_has_groups_in_csv_and_parquet(tmp_path: Path) -> None:
    file = manifest(tmp_path, [("b.png", "x", "", " p1 "), ("a.png", "y", "", "")])
    table = open_images(file)
    assert (table.paths, table.groups) == (("a.png", "b.png"), (None, "p1"))
    assert table.select([1]).groups == ("p1",)
    columns = {"path": ["a.png", "b.png"], "label": ["x", "y"], "group": pa.array([7, None], pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert open_images(tmp_path / "m.parquet").groups == ("7", None)
    assert open_images(manifest(tmp_path, [("b.png", "x", "", "")])).groups is None  # an empty column is none
    (tmp_path / "twice.csv").write_text("path,group,group\na.png,1,2\n")
    with pytest.raises(UserError, match="has the column 'group' twice"):
        open_images(tmp_path / "twice.csv")


def test_a_table_of_embeddings_keeps_groups_and_old_ones_open(tmp_path: Path) -> None:
    table = Embeddings(torch.eye(3), ["a", "b", "c"], ["x", "y", None], [None] * 3, {}, ["p", None, "p"])
    table.save(tmp_path / "e.parquet")
    assert Embeddings.load(tmp_path / "e.parquet").groups == ["p", None, "p"]
    assert pq.read_schema(tmp_path / "e.parquet").names == ["path", "label", "split", "group", "embedding"]
    assert table.select([2, 1]).groups == ["p", None]
    replace(table, groups=None).save(tmp_path / "old.parquet")
    assert pq.read_schema(tmp_path / "old.parquet").names == ["path", "label", "split", "embedding"]
    assert Embeddings.load(tmp_path / "old.parquet").groups is None


def fitted(file: Path, **options: float) -> ImageDataModule:
    data = ImageDataModule(str(file), **options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_bad_groups_get_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = rows_of(("p1", "a", 4), ("p2", "b", 4), ("p3", "a", 4), ("p4", "b", 4))
    broken = [(path, label, "val" if path.endswith("-0.png") else "train", group) for path, label, _, group in whole]
    with pytest.raises(UserError, match=r"are in two splits: 'p1' in train and val, .*; move each to one split"):
        fitted(manifest(tmp_path, broken))
    paths, labels, splits, groups = ([row[position] for row in broken] for position in range(4))
    table = Embeddings(torch.randn(16, 3), paths, labels, splits, {}, groups)
    with pytest.raises(UserError, match="of the embeddings are in two splits: 'p1' in train and val"):
        split_rows(table, val_fraction=0.2, test_fraction=0.2, seed=0)
    with pytest.raises(UserError, match=r"1 group of images in .* cannot be shared among 2 sides; give more groups"):
        fitted(manifest(tmp_path, [(path, label, "", "p") for path, label, _, _ in whole]))
    with pytest.raises(UserError, match=r"too few groups to hold some out \('a', 'b' in one group each\)"):
        fitted(manifest(tmp_path, rows_of(("p1", "a", 4), ("p2", "b", 4))))
    with caplog.at_level(logging.WARNING):
        data = fitted(manifest(tmp_path, rows_of(("p1", "a", 4), ("p2", "b", 4), ("p3", "b", 4))))
    assert "all images of a class are in one group, and stay in train: 'a'" in caplog.text
    assert set(data.tables["val"].labels) == {"b"} and set(data.tables["train"].labels) == {"a", "b"}


def test_an_audit_keeps_groups_beside_near_duplicates() -> None:
    rows = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0]  # a near-duplicate, and row 1 is of a group with row 2
    groups = [None, "p", "p", *["q"] * 3, *[None] * 54]
    found = nearest(unit_rows(rows)).joined(groups).group
    assert found[:6].tolist() == [0, 0, 0, 3, 3, 3] and len(found.unique()) == 56


def test_a_reviewed_manifest_keeps_groups(tmp_path: Path) -> None:
    table = open_images(manifest(tmp_path, [("a.png", "x", "train", "p"), ("b.png", "y", "", "")]))
    assert write_manifest(table, ["z", "y"], [True, True], tmp_path / "new.csv") == 2
    again = open_images(tmp_path / "new.csv")
    assert again.labels == ("z", "y") and (again.groups, again.splits) == (table.groups, table.splits)
