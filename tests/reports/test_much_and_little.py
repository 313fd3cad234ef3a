"""Reports of much and of little: 1,000 classes, 100,000 images, no calibration, labels that cannot be judged."""

import json
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reports.example_results import NASTY, write_json, write_run
from tests.reports.test_report import Page, check_numbers
from transferkit.probe.audit_files import audit_run
from transferkit.reports import data_sections
from transferkit.reports.report import report_of


@pytest.mark.parametrize(("split", "said"), [("test", "no labeled val split"), ("val", "val itself was tested")])
def test_uncalibrated_confidence_is_said(tmp_path: Path, split: str, said: str) -> None:
    example = write_run(tmp_path, NASTY[:2])
    for name, column in (("predictions", "calibrated_probability"), ("splits", "split")):
        file = example.run / f"{name}.parquet"
        table = pq.read_table(file).drop_columns([column])
        if name == "splits":
            table = table.append_column("split", pa.array([split] * len(example.paths)))
        pq.write_table(table, file)
    page = Page(report_of(example.run))
    assert f"confidence after calibration: {said}" in page.text or f"the data had {said}" in page.text
    assert "accuracy on test" in page.text if split == "test" else "no test split" in page.text


def test_what_an_audit_could_not_judge_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, NASTY[:2]).run
    known = json.loads((run / "audit.json").read_text())
    for change, said in (
        ({"judged": 0}, "No label was judged: that takes two classes of two images each."),
        ({"judged": 9}, "3 of 12 labels were not judged: their class has no other image."),
        ({"rows": 12, "of": 100_000}, "Looked for among 12 of 100,000 images, drawn by chance."),
    ):
        write_json(run / "audit.json", known | change)
        assert said in Page(report_of(run)).text


def test_a_thousand_classes(tmp_path: Path) -> None:
    names = [f"class {number:04d}" for number in range(1000)]
    run = write_run(tmp_path, names, per_class=2, images=False).run
    file = report_of(run)
    page = Page(file)
    check_numbers(page, run)
    assert "The 20 classes of the most frequent mistakes, of 1,000" in page.text
    assert re.search(r"\d+ other classes", page.text)
    assert file.stat().st_size < 4 * 2**20


def test_many_images_are_sampled_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, NASTY[:2], per_class=1000, images=False).run
    monkeypatch.setattr(data_sections, "POINTS", 300)
    monkeypatch.setattr(data_sections, "LARGEST", 500)
    page = Page(report_of(run))
    assert "300 of 2,000 images, drawn by chance" in page.text and page.tags["use"] >= 300
    assert "among 500 of 2,000 images, drawn by chance" in page.text


@pytest.mark.slow
def test_a_hundred_thousand_images_are_sampled_and_it_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, [f"class {number:04d}" for number in range(100)], per_class=1000, images=False).run
    audit_run(run)
    start = time.process_time()
    file = report_of(run)
    assert time.process_time() - start < 60 and file.stat().st_size < 8 * 2**20
    page = Page(file)
    check_numbers(page, run)
    assert "1,500 of 100,000 images, drawn by chance" in page.text
    assert page.text.count("ooked for among 20,000 of 100,000 images, drawn by chance") == 3  # labels, outliers, copies
