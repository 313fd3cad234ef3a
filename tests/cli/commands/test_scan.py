"""The scan command: what is printed and written, and its exit status."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image_corpus import corpus, encode, photo
from tests.running import transferkit

HOSTILE = "a\x1b[31m\n\t\u202e<script>.png"


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own: a scan writes its report where it is run."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


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
    title, *lines = done.out.splitlines()
    assert title == f"{photo_folder}: 24 images, 2 classes, 12 train, 12 val; nothing found"
    cells = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]
    assert [row for row in cells if row] == [
        ["class", "images", "train", "val"],
        ["apples", "12", "6", "6"],
        ["limes", "12", "6", "6"],
    ]
    assert done.err == f"written: scan/report.html\nnext: transferkit fit --data.root {photo_folder}\n"


def test_a_table_of_what_was_found_and_2(spoilt: Path) -> None:
    done = transferkit("scan", str(spoilt))
    assert done.status == 2
    assert "truncated" in done.out and "half0.jpg (truncated JPEG)" in done.out and "and 3 more" in done.out
    assert done.err == "written: scan/report.html\nfindings that would stop or spoil training: 6 of 6\n"
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
        "ignored": {},
        "errors": 6,
        "notes": 0,
    }
    assert finding["finding"] == "truncated" and finding["severity"] == "error" and finding["count"] == 6
    assert {"path": f"train/limes/{HOSTILE}", "detail": "truncated JPEG"} in finding["found"]


def test_csv_is_one_line_a_finding(spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.csv"
    done = transferkit("scan", str(spoilt), "--out", str(out))
    assert done.status == 2
    assert f"written: {out}, scan/report.html\n" in done.err
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


def test_other_files_are_counted(photo_folder: Path) -> None:
    for name in ("clip.mp4", "paper.pdf", "notes.json", "more.json"):
        (photo_folder / name).touch()
    (photo_folder / "train/limes/9.tga").touch()
    done = transferkit("scan", str(photo_folder))
    assert done.status == 0
    assert "other files, not checked: 2 .json, 1 PDF, 1 video\n" in done.out
    assert "other-format" in done.out and "train/limes/9.tga (TGA)" in done.out
    assert json.loads(transferkit("scan", str(photo_folder), "--json").out)["ignored"] == {
        ".json": 2,
        "video": 1,
        "PDF": 1,
    }


def test_of_many_classes_the_largest_and_the_smallest_are_shown(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"c{number:02d}").mkdir()
        for image in range(1 + number):
            (tmp_path / f"c{number:02d}" / f"{image}.png").touch()
    shown = transferkit("scan", str(tmp_path)).out
    assert "c29" in shown and "c00" in shown and "c15" not in shown.split("finding")[0]
    assert "(10 more; --json has them)" in shown


@pytest.mark.parametrize(("utf8", "below"), [("0", True), pytest.param("1", False, marks=pytest.mark.slow)])
def test_names_in_utf_8_under_a_locale_that_knows_ascii_only(tmp_path: Path, utf8: str, below: bool) -> None:
    """Either they are read, or the locale is blamed and not the names."""
    for label in ("caf\u00e9", "\u6728"):
        folder = tmp_path / ("d" if below else "\u00e9") / label
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(encode(photo(40, 40, seed=len(label)), "PNG"))
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8, "PYTHONIOENCODING": ""}
    command = [sys.executable, "-m", "transferkit", "scan", str(folder.parent)]
    done = subprocess.run(command, capture_output=True, env=os.environ | locale | {"TRANSFERKIT_CACHE": str(tmp_path)})
    if utf8 == "1":
        assert done.returncode == 0 and "caf\u00e9" in done.stdout.decode() and "\u6728" in done.stdout.decode()
    else:
        said = done.stderr.decode()
        assert (
            done.returncode == 2
            and said.count("\n") == 1
            and "this locale decodes names as ascii; set PYTHONUTF8=1" in said
        )


def test_page_and_terminal_name_the_same_options(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "train/limes/cut.png").write_bytes(b"")
    page = tmp_path / "scan.html"
    done = transferkit("scan", str(photo_folder), "--report", str(page))
    assert done.status == 2
    for said in (done.out, page.read_text(encoding="utf-8")):
        assert "--data.on_error skip" in said and "`on_error" not in said and "on_error=" not in said


def test_the_report_has_a_place_without_being_asked(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other results, named last; never among the images, whose folder stays as it is."""
    assert "written: scan/report.html\n" in transferkit("scan", str(photo_folder)).err
    assert Path("scan/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "written" not in transferkit("scan", str(photo_folder), "--report", "none").err
    for inside in (photo_folder, photo_folder / "train"):
        monkeypatch.chdir(inside)
        before = sorted(photo_folder.rglob("*"))
        done = transferkit("scan", str(photo_folder))
        assert done.status == 0 and "no report: it would lie among the images; --report names a place" in done.err
        assert sorted(photo_folder.rglob("*")) == before


def test_a_scan_does_not_fail_for_its_own_report(photo_folder: Path) -> None:
    Path("scan").write_text("mine")
    done = transferkit("scan", str(photo_folder))
    assert done.status == 0 and "no report: cannot write into scan" in done.err
    done = transferkit("scan", str(photo_folder), "--report", "scan/other.html")
    assert done.status == 2 and done.err.count("\n") == 1 and Path("scan").read_text() == "mine"
