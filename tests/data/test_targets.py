"""Classes, several labels and numbers: how manifests hold them, and what a network learns of them."""

import csv
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.preprocessing import MultiLabelBinarizer

from transferkit.data.image_table import check_trainable, open_images
from transferkit.data.manifest import read_columns
from transferkit.data.targets import TARGETS, joined_labels, number_of, parts_of
from transferkit.errors import UserError

LABELS = ["dog|cat", "", "cat", "|", "bird| dog "]
PARSED = ["cat|dog", None, "cat", "|", "bird|dog"]


def write_csv(folder: Path, column: str, cells: list[Any]) -> Path:
    with (folder / "m.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", column])
        writer.writerows([f"{row}.png", cell] for row, cell in enumerate(cells))
    return folder / "m.csv"


def write_parquet(folder: Path, column: str, cells: Any) -> Path:
    paths = [f"{row}.png" for row in range(len(cells))]
    pq.write_table(pa.table({"path": paths, column: cells}), folder / "m.parquet")
    return folder / "m.parquet"


def test_labels_between_bars_and_lists_are_the_same(tmp_path: Path) -> None:
    table = open_images(write_csv(tmp_path, "label", LABELS), multilabel=True)
    lists = pa.array([["dog", "cat"], None, ["cat"], [], ["bird", "dog"]], pa.list_(pa.string()))
    assert list(table.labels) == PARSED and table.kind == "labels"
    for multilabel in (True, None):  # lists say by themselves that they are several
        same = open_images(write_parquet(tmp_path, "label", lists), multilabel=multilabel)
        assert (same.labels, same.kind, same.class_names) == (table.labels, "labels", ["bird", "cat", "dog"])
    texts = open_images(write_parquet(tmp_path, "label", LABELS), multilabel=True)
    assert texts.labels == table.labels
    assert table.select([0, 2]).kind == "labels"


def test_what_is_learned_of_labels_is_scikit_learns_indicator() -> None:
    names = TARGETS["labels"].names(PARSED)
    known = [label for label in PARSED if label is not None]
    expected = MultiLabelBinarizer(classes=names).fit_transform([parts_of(label) for label in known])
    assert TARGETS["labels"].encode(known, names).tolist() == expected.tolist()
    encoded = TARGETS["labels"].encode(PARSED, names)
    assert encoded[1].isnan().all() and encoded.dtype == torch.float32
    assert TARGETS["labels"].counts(PARSED) == dict(zip(names, expected.sum(0).tolist(), strict=True))
    assert TARGETS["labels"].encode(["fish"], names).tolist() == [[0.0, 0.0, 0.0]]
    assert [joined_labels(parts_of(label)) for label in known] == known


def test_two_unicode_forms_are_one_label(tmp_path: Path) -> None:
    table = open_images(write_csv(tmp_path, "label", ["e\u0301te|a", "\u00e9te"]), multilabel=True)
    assert table.class_names == ["a", "\u00e9te"]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_number_per_image(tmp_path: Path, write: Any) -> None:
    table = open_images(write(tmp_path, "target", [1.5, 2.0, -1e-3, math.nan]))
    assert table.kind == "number" and table.class_names == ["target"]
    found = TARGETS["number"].encode(table.labels, table.class_names)
    assert found[:3, 0].tolist() == pytest.approx([1.5, 2.0, -1e-3]) and found[3].isnan() and found.shape == (4, 1)
    assert number_of(table.labels[2]) == -1e-3  # no digit is lost on the way


def test_a_column_label_is_used_beside_target(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.csv").write_text("path,label,target\n0.png,a,1\n1.png,b,2\n")
    table = open_images(tmp_path / "m.csv")
    assert table.labels == ("a", "b") and table.kind == "class" and "'label' is used" in caplog.text


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "cat"], "row 2: target 'cat' is not a number; name the column label"),
        (["inf", "1"], "row 1: target 'inf' is not a number"),
        (["1", "nan"], r"labels are missing for 1 of 2 images in .*: '1.png'; label them .*column 'target'"),
        (["3", "3.0"], "all training images of .* have the target 3.0; give images with other numbers"),
        (["-0.0", "0.0"], "all training images of .* have the target -?0.0; give images with other numbers"),
        (["1e308", "1"], r"range from 1.0 to 1e\+308, more or less than float32 can tell; give them in another unit"),
        (["-1e39", "1"], r"range from -1e\+39 to 1.0, more or less"),
        (["1e-310", "2e-310"], r"range from 1e-310 to 2e-310, more or less"),
        (["1700000000", "1700000001"], "range from 1700000000.0 to 1700000001.0, .*, or subtract the lowest"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(tmp_path: Path, cells: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_trainable(open_images(write_csv(tmp_path, "target", cells)))


@pytest.mark.parametrize("cells", [["1e30", "2e30"], ["1e-30", "3e-30"], ["1700000000", "1701000000"], ["-0.0", "1"]])
def test_numbers_that_float32_tells_apart_are_taken(tmp_path: Path, cells: list[str]) -> None:
    check_trainable(open_images(write_csv(tmp_path, "target", cells)))


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        (["a|b", "a"], None, "every training image of .* has the label 'a'; add images without it"),
        (["a", "b"], None, "`multilabel` is set, but every training image of .* has exactly one label"),
        (["|", "|"], None, "no training image of .* has any label"),
        (["a|b", "a", "c"], ["train", "train", "val"], "class 'c' is in val but not in train"),
        (["a|b", "", "c"], None, "labels are missing for 1 of 3 images"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    tmp_path: Path, labels: list[str], splits: list[str] | None, message: str
) -> None:
    rows = zip(labels, splits or [""] * len(labels), strict=True)
    lines = [f"{row}.png,{label},{split}" for row, (label, split) in enumerate(rows)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *lines]))
    with pytest.raises(UserError, match=message):
        check_trainable(open_images(tmp_path / "m.csv", multilabel=True))


def test_an_option_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    lists = pa.array([["a"], ["b"]], pa.list_(pa.string()))
    with pytest.raises(UserError, match="are lists, several per image; add `multilabel=True`"):
        open_images(write_parquet(tmp_path, "label", lists), multilabel=False)
    with pytest.raises(UserError, match=r"has a number per image .*; leave out `multilabel`"):
        open_images(write_csv(tmp_path, "target", [1, 2]), multilabel=True)
    barred = pa.array([["a|b"], ["b"]], pa.list_(pa.string()))
    with pytest.raises(UserError, match=r"the label 'a\|b' has a \| in it"):
        open_images(write_parquet(tmp_path, "label", barred))


def test_several_labels_without_the_option_are_noticed(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path, "label", ["a|b", "a", "b"])
    with pytest.raises(UserError, match=r"look like several per image: 'a\|b'; add `multilabel=True`"):
        check_trainable(open_images(manifest))
    check_trainable(open_images(write_csv(tmp_path, "label", ["a|b", "c", "c|"])))  # names that only have a bar


def test_faulty_rows_are_collected(tmp_path: Path) -> None:
    faults: list[str] = []
    found = read_columns(write_csv(tmp_path, "target", ["1", "x", "3"]), faults, kind="number")
    assert found.labels == ["1.0", "3.0"] and len(faults) == 1 and "row 2: target 'x'" in faults[0]


def test_parts_of_the_range_have_equally_many_rows() -> None:
    values = [str(float(value)) for value in torch.randn(100).exp().tolist()]
    strata = TARGETS["number"].strata(values)
    assert sorted(strata.count(part) for part in set(strata)) == [10] * 10
    highest = [max(float(v) for v, s in zip(values, strata, strict=True) if s == part) for part in range(10)]
    assert highest == sorted(highest)
