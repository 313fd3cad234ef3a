"""Near-duplicates in different splits: those of ``duplicates``, in a file and in the report of a probe."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.reports.example_results import NASTY, write_run
from tests.reports.test_report import Page, check_numbers
from transferkit.data.embeddings import Embeddings
from transferkit.reports.report import report_of
from transferkit.search import leaks
from transferkit.search.duplicates import find_duplicates
from transferkit.search.leaks import save_leaks


def planted(rows: int = 60) -> Embeddings:
    vectors = torch.randn(rows, 16, generator=torch.Generator().manual_seed(0))
    vectors[40], vectors[7] = 2 * vectors[3], vectors[5] + 1e-4  # one pair across splits, one within train
    splits = ["train"] * 30 + ["val"] * 10 + ["test"] * (rows - 40)
    labels = [f"class {row % 3}" for row in range(rows)]
    return Embeddings(vectors, [f"{row:03d}.jpg" for row in range(rows)], labels, splits, {})


def test_leaks_are_those_of_duplicates(tmp_path: Path) -> None:
    table = planted()
    bare, splits = replace(table, splits=[None] * 60), dict(zip(table.paths, table.splits, strict=True))
    found = json.loads(save_leaks(bare, splits, tmp_path).read_text())
    expected = find_duplicates(table)
    assert found["count"] == expected.leak_count == len(found["pairs"]) == 1
    assert found["threshold"] == expected.threshold and found["images"] == found["of"] == 60
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"], pair["splits"]) == ("003.jpg", "040.jpg", ["train", "test"])
    assert pair["labels"] == ["class 0", "class 1"] and pair["cosine"] == pytest.approx(1)


def test_images_without_a_split_are_not_compared(tmp_path: Path) -> None:
    table = planted()
    found = json.loads(save_leaks(table, {"003.jpg": "train"}, tmp_path).read_text())
    assert (found["count"], found["images"]) == (0, 1)
    assert json.loads(save_leaks(table, {}, tmp_path).read_text())["threshold"] is None


def test_of_many_images_some_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "MOST_ROWS", 20)
    table = planted()
    found = json.loads(save_leaks(table, dict(zip(table.paths, table.splits, strict=True)), tmp_path).read_text())
    assert (found["images"], found["of"]) == (20, 60)


def test_the_report_of_a_run_shows_them_with_images(tmp_path: Path) -> None:
    example = write_run(tmp_path, NASTY[:2])
    (example.run / "leaks.json").unlink()
    assert "among those of other splits: leaks.json is not there" in Page(report_of(example.run)).text
    one, two = example.paths[:2]
    pair = {"first": one, "second": two, "splits": ["train", "test"], "labels": list(NASTY[:2]), "cosine": 0.9991}
    content = {"count": 31, "threshold": 0.98, "images": 12, "of": 30, "pairs": [pair]}
    (example.run / "leaks.json").write_text(json.dumps(content))
    page = Page(report_of(example.run))
    assert check_numbers(page, example.run)["leaks.json"] >= 4
    assert page.of("leaks.json count") == [31] and page.of("leaks.json pairs.0.cosine") == [0.9991] * 2
    for said in ("train and test: a leak, other labels", "among 12 of 30 images", "19 more pairs not shown"):
        assert said in page.text
