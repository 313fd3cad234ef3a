"""The scan command: what is printed and written, and its exit status."""

import csv
import json
from pathlib import Path

import pytest

from tests.commands.running import transferkit
from tests.image_corpus import corpus

HOSTILE = "a\x1b[31m\n\t\u202e<script>.png"


@pytest.fixture
def spoilt(photo_folder: Path) -> Path:
    half = next(case.data for case in corpus() if case.name == "half.jpg")
    for number in range(5):
        (photo_folder / f"train/limes/half{number}.jpg").write_bytes(half)
    (photo_folder / f"train/limes/{HOSTILE}").write_bytes(half)
    return photo_folder


def test_clean_images_end_with_0_and_the_next_command(photo_folder: Path) -> None:
    done = transferkit("scan", str(photo_folder))
    assert done.status == 0
    assert done.out == f"{photo_folder}: 24 images, 2 classes, 12 train, 12 val; nothing found\n"
    assert done.err == f"next: transferkit fit --data.root {photo_folder}\n"


def test_a_table_of_what_was_found_and_2(spoilt: Path) -> None:
    done = transferkit("scan", str(spoilt))
    assert done.status == 2
    assert "truncated" in done.out and "half0.jpg (truncated JPEG)" in done.out and "and 3 more" in done.out
    assert done.err == "findings that would stop or spoil training: 6 of 6\n"
    assert "\x1b" not in done.out and "\t" not in done.out and "\u202e" not in done.out


def test_json_is_one_object(spoilt: Path) -> None:
    done = transferkit("scan", str(spoilt), "--json")
    assert done.status == 2
    content = json.loads(done.out)
    assert done.out.isascii() and "\x1b" not in done.out
    (finding,) = content.pop("findings")
    assert content == {
        "source": str(spoilt),
        "images": 30,
        "classes": {"apples": 12, "limes": 18},
        "splits": {"train": 18, "val": 12},
        "errors": 6,
        "notes": 0,
    }
    assert finding["finding"] == "truncated" and finding["severity"] == "error" and finding["count"] == 6
    assert {"path": f"train/limes/{HOSTILE}", "detail": "truncated JPEG"} in finding["found"]


def test_csv_is_one_line_a_finding(spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.csv"
    done = transferkit("scan", str(spoilt), "--out", str(out))
    assert done.status == 2
    assert f"written: {out}\n" in done.err
    assert len(out.read_text().splitlines()) == 7
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "path": "train/limes/half0.jpg",
        "finding": "truncated",
        "severity": "error",
        "detail": "truncated JPEG",
    }
    assert rows[0]["path"] == r"train/limes/a\x1b[31m\n\t\u202e<script>.png"


def test_a_report_that_cannot_be_written(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = transferkit("scan", str(photo_folder), "--out", str(tmp_path / "file" / "report.csv"))
    assert done.status == 2
    assert done.err.startswith("transferkit: error: cannot write ") and done.err.count("\n") == 1


def test_nothing_to_scan_is_one_line(tmp_path: Path) -> None:
    done = transferkit("scan", str(tmp_path / "absent"))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("transferkit: error: no such folder or file") and done.err.count("\n") == 1
