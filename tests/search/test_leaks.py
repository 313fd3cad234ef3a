"""Near-duplicates in different splits: those of ``duplicates``, in a file and in the report of a probe."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.reports.example_results import NASTY, write_run
from tests.reports.test_report import Page, check_numbers
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.data.seen import remember_paths
from transferkit.embed import cached_features, describe
from transferkit.extractor import Extractor
from transferkit.probe.audit import audit_embeddings
from transferkit.reports.data_sections import near_duplicates
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


def collapsed() -> Embeddings:
    """What a fine-tuned network makes of three classes: those of one are all alike, and two images are copies."""
    noise = torch.Generator().manual_seed(0)
    centers = 4 * torch.eye(3, 32).repeat(40, 1)
    vectors = centers + 0.1 * torch.randn(120, 32, generator=noise)
    vectors[117], vectors[118] = vectors[0] + 1e-4, vectors[1] + 1e-4
    labels, splits = [f"class {row % 3}" for row in range(120)], ["train"] * 80 + ["test"] * 40
    return Embeddings(vectors, [f"{row:03d}.jpg" for row in range(120)], labels, splits, {})


def test_all_that_count_near_duplicates_know_a_fine_tuned_network(tmp_path: Path) -> None:
    """By the metadata of its embeddings: copies are found, classes are not taken for them."""
    loose = collapsed()
    strict = replace(loose, metadata={"fine_tuned": True})
    splits = dict(zip(loose.paths, loose.splits, strict=True))

    def counts(table: Embeddings) -> dict[str, int]:
        audit = audit_embeddings(table)
        section = near_duplicates(table)
        return {
            "duplicates": find_duplicates(table).pair_count,
            "leaks": json.loads(save_leaks(table, splits, tmp_path).read_text())["count"],
            "audit": audit.counts()["burst"],
            "report": int(re.findall(r"groups? of (\d+)", section.lead)[0]) if "no two" not in section.lead else 0,
        }

    assert counts(strict) == {"duplicates": 2, "leaks": 2, "audit": 2, "report": 4}
    assert all(count > 50 for count in counts(loose).values()), "else this test tests nothing"


def test_embeddings_say_that_their_backbone_has_learned_classes(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of an export; not those of a frozen backbone or of a student."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    images = open_images(photo_folder)
    extractor = Extractor.from_pretrained("squeezenet1_1", weights="none")
    assert "fine_tuned" not in describe(extractor, images)
    for record, learned in (
        ({"regime": "full"}, True), ({"regime": "lp-ft"}, True), ({"regime": "scratch"}, True),
        ({"regime": "frozen"}, False), ({"regime": "distill", "fitted_on": "x"}, False),
        ({"regime": "frozen", "backbone_fitted_on": remember_paths(["a.jpg"])}, True),
    ):  # fmt: skip
        extractor.record = record
        assert ("fine_tuned" in describe(extractor, images)) == learned, record
    extractor.record = {"regime": "full", "fitted_on": remember_paths(["a.jpg"])}
    extractor.save_pretrained(tmp_path / "export")
    assert cached_features(Extractor.from_pretrained(tmp_path / "export"), images).metadata["fine_tuned"] is True
