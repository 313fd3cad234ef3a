"""``transferkit report``, and ``scan --report``."""

import json
from pathlib import Path

import pytest

from tests.reports.example_results import NASTY, write_run
from tests.running import refused, transferkit


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path, NASTY[:2]).run.relative_to(tmp_path)


def test_a_run_gets_its_report(run: Path) -> None:
    done = transferkit("report", str(run))
    assert done.status == 0 and done.err == f"written: {run}/report.html\n"
    assert "<!doctype html>" in (run / "report.html").read_text(encoding="utf-8")
    done = transferkit("report", str(run), "--out", "elsewhere.html", "--json")
    assert json.loads(done.out) == {"report": "elsewhere.html", "bytes": Path("elsewhere.html").stat().st_size}


def test_two_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", NASTY[:2], wrong=0).run
    done = transferkit("report", str(run), str(other))
    assert done.status == 0 and (other / "comparison.html").is_file()


def test_bad_input_is_one_line(run: Path) -> None:
    assert refused(transferkit("report", "images"), r"images holds none of config\.yaml, ")
    assert refused(transferkit("report", "nowhere"), "nowhere does not exist; give the directory")
    assert refused(transferkit("report", str(run), str(run), str(run)), "3 directories; give one, or two")
    assert refused(transferkit("report", str(run), "--out", "images/labels.csv/x.html"), "cannot write")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "data: [1, 2]"),
        ("config.yaml", "- 1"),
        ("metrics.csv", "epoch,val/loss\none,two\n"),
        ("metrics.json", '{"test/ece": "low", "test/loss": null}'),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"test/ece": NaN}'),
    ],
)
def test_files_that_somebody_changed_end_in_a_report_or_in_one_line(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    done = transferkit("report", str(run))
    assert done.status == 0 or refused(done, "not as transferkit writes them")


def test_moved_images_are_named_by_option(run: Path) -> None:
    Path("images").rename("moved")
    transferkit("report", str(run))
    assert "make the report again and give their place" in (run / "report.html").read_text(encoding="utf-8")
    assert transferkit("report", str(run), "--images", "moved/labels.csv").status == 0
    assert "<image " in (run / "report.html").read_text(encoding="utf-8")


def test_scan_writes_a_report_of_what_it_found(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "train/apples/broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    (photo_folder / "train/apples/copy.jpg").write_bytes((photo_folder / "train/apples/0.jpg").read_bytes())
    file = tmp_path / "reports" / "scan.html"
    done = transferkit("scan", str(photo_folder), "--report", str(file), "--json")
    assert done.status == 2 and f"written: {file}" in done.err
    found = json.loads(done.out)
    html = file.read_text(encoding="utf-8")
    assert f'value="{found["errors"]}" data-source="scan errors"' in html
    assert f'value="{found["images"]}" data-source="scan images"' in html
    for each in found["findings"]:
        assert f'value="{each["count"]}" data-source="scan {each["finding"]}"' in html
    assert html.count("<image ") == 2 and "train/apples/broken.jpg" in html
