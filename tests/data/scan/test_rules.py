"""Faults of several files together: copies, classes, names, and what a fit would refuse."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.scan.folders import classes, data_of, found, put
from transferkit.data.scan import scan
from transferkit.data.scan.rules import names


def test_copies_in_one_split_and_across_splits_and_under_two_labels(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    for place in ("train/a/twin.png", "train/a/deep/twin.png"):
        put(root / place, seed=1)
    for place in ("train/a/both.png", "val/a/both.png"):
        put(root / place, seed=2)
    for place in ("train/a/which.png", "train/b/which.png"):
        put(root / place, seed=3)
    for place in ("train/a/all.png", "val/b/all.png"):
        put(root / place, seed=4)
    assert found(scan(root)) == {
        "duplicate": ["train/a/deep/twin.png", "train/a/twin.png"],
        "label-conflict": ["train/a/all.png", "train/a/which.png", "train/b/which.png", "val/b/all.png"],
        "leak": ["train/a/both.png", "val/a/both.png"],
    }


def test_an_unlabeled_copy_of_two_labels_has_no_label(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path / f"{name}.png", seed=1)
    (tmp_path / "m.csv").write_text("path,label\na.png,a\nb.png,b\nc.png,\n")
    details = {finding.path: finding.detail for finding in scan(tmp_path / "m.csv").findings}
    assert details["c.png"] == "no label, but 'a.png' is 'a'" and details["a.png"] == "'a', but 'b.png' is 'b'"


def test_copies_that_a_drawn_split_may_part_are_a_leak(tmp_path: Path) -> None:
    for place in ("a/1.png", "a/2.png"):
        put(tmp_path / place, seed=1)
    put(tmp_path / "b/1.png")
    report = scan(tmp_path)
    assert found(report) == {"leak": ["a/1.png", "a/2.png"]}
    assert report.findings[0].detail == "the same as 'a/2.png', and no split is given"


def test_groups_that_splits_break_and_copies_in_two_groups(tmp_path: Path) -> None:
    """A group in two splits is an error; copies leak unless one group keeps them together."""
    rows = ["path,label,split,group", "a.png,a,,p", "b.png,a,,p", "c.png,b,,q", "d.png,b,,r", "e.png,b,,r"]
    for number, name in enumerate("abcde"):
        put(tmp_path / f"{name}.png", seed={"b": 0, "d": 2}.get(name, number))  # a = b, c = d
    (tmp_path / "m.csv").write_text("\n".join(rows))
    drawn = scan(tmp_path / "m.csv")
    assert found(drawn) == {"duplicate": ["a.png", "b.png"], "leak": ["c.png", "d.png"], "one-group": ["."]}
    given = [row.replace(",,", ",val," if row[0] in "be" else ",train,", 1) for row in rows[1:]]
    (tmp_path / "m.csv").write_text("\n".join([rows[0], *given]))
    broken = [finding.detail for finding in scan(tmp_path / "m.csv").findings if finding.kind == "group-leak"]
    assert broken == ["group 'p' is in train and val", "group 'r' is in train and val"]


def test_two_empty_files_are_no_copies(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos")
    for place in ("train/a/x.png", "train/b/x.png"):
        (root / place).touch()
    assert found(scan(root)) == {"zero-byte": ["train/a/x.png", "train/b/x.png"]}


def test_names_that_differ_only_by_case() -> None:
    listed = ["a/X.png", "a/x.PNG", "a/y.png", "b/x.png", "B/z.png"]
    assert sorted((finding.kind, finding.path) for finding in names(listed)) == [
        ("name-case", "B"),
        ("name-case", "a/X.png"),
        ("name-case", "a/x.PNG"),
        ("name-case", "b"),
    ]


def test_classes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number in range(20):
        put(root / "apples" / f"{number}.png")
    put(root / "limes" / "0.png")
    put(root / "Limes" / "0.png")
    (root / "pears").mkdir()
    report = scan(root)
    if len(report.table.class_names) == 2:
        pytest.skip("this file system does not know case")
    assert found(report) == {
        "class-case": ["."],
        "empty-folder": ["pears"],
        "imbalance": [".", "."],
        "name-case": ["Limes", "limes"],
    }
    assert "class 'limes' has 1 training images, the largest class 20" in {f.detail for f in report.findings}


def no_val_class(root: Path) -> None:
    put(root / "val/c/1.png")


def loose_image(root: Path) -> None:
    put(root / "train/loose.png")


def folder_beside_splits(root: Path) -> None:
    put(root / "extra/1.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_val_class, "class 'c' is in val but not in train"),
        (loose_image, "labels are missing for 1 of 10 images"),
        (folder_beside_splits, "contains the splits 'train', 'val' and also 'extra'"),
    ],
)
def test_what_fit_would_refuse(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    root = classes(tmp_path / "photos")
    spoil(root)
    (root / "train/a/half.jpg").write_bytes(data_of("half.jpg"))
    report = scan(root)
    assert found(report) == {"truncated": ["train/a/half.jpg"], "untrainable": ["."]}, "one fault does not hide another"
    assert any(said in finding.detail for finding in report.findings)


def test_an_unlabelled_folder_may_hold_copies(tmp_path: Path) -> None:
    put(tmp_path / "1.png", seed=1)
    put(tmp_path / "2.png", seed=1)
    assert found(scan(tmp_path)) == {"duplicate": ["1.png", "2.png"], "no-labels": ["."]}


def test_classes_whose_names_look_the_same_are_one(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for number, label in enumerate((composed, apart, "tea")):
        put(tmp_path / label / f"{number}.png")
    report = scan(tmp_path)
    assert report.table.class_names == [composed, "tea"]
    assert found(report) == {"name-unicode": sorted([composed, apart])}
    assert {finding.detail for finding in report.findings} == {"beside 'caf\\xe9'", "beside 'cafe\\u0301'"}
    rows = [f"{composed}/0.png,{apart}", f"{apart}/1.png,{composed}", "tea/2.png,tea"]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    manifest = scan(tmp_path / "m.csv")
    assert manifest.table.class_names == [composed, "tea"]
    assert found(manifest)["name-unicode"] == sorted(["m.csv", composed, apart])


def test_classes_that_differ_by_case_width_or_spaces(tmp_path: Path) -> None:
    for label in ("Cat", "cat", "cat ", "\uff23\uff41\uff54", "\u00e9cole", "E\u0301COLE", "dog"):
        put(tmp_path / label / "1.png")
    details = {finding.detail for finding in scan(tmp_path).findings if finding.kind == "class-case"}
    assert details == {
        "classes 'Cat', 'cat', 'cat ', '\\uff23\\uff41\\uff54'",
        "classes 'E\\u0301COLE', '\\xe9cole'",
    }


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled", "to_sort", "to-label", "UNKNOWN", "new"])
def test_a_folder_of_images_to_sort_is_not_a_class(name: str, tmp_path: Path) -> None:
    for number, place in enumerate(("a", "b", name)):
        put(tmp_path / place / "1.png", seed=number)
    (finding,) = (finding for finding in scan(tmp_path).findings if finding.kind == "unsorted")
    assert finding.detail == f"class {name!r}" and finding.severity == "note"
    (tmp_path / name).rename(tmp_path / "newts")
    assert "unsorted" not in found(scan(tmp_path))
