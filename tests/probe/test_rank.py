"""Ranking of embeddings: who is first, whether the rows can tell, and what the published figures would have said."""

from pathlib import Path

import pytest
import torch

from tests.similarity.test_transferability import data
from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.probe.rank import Candidate, Known, measure_candidate, rank_candidates, verdict
from transferkit.probe.rank_files import flat
from transferkit.reports.report import report_of
from transferkit.runtime.json_files import write_json
from transferkit.similarity.transferability import log_me, shrunk_h_score


def candidate(name: str, noise: float, imagenet: float | None, rows: int = 120, groups: bool = False) -> Candidate:
    features, target = data(rows, 6)
    values = 2 * torch.eye(3, 6)[target] + noise * features
    embeddings = Embeddings(
        values, [f"{row:03d}.png" for row in range(rows)], [f"class {n}" for n in target.tolist()], [None] * rows, {},
        [f"group {row // 6}" for row in range(rows)] if groups else None,
    )  # fmt: skip
    options = {"coarse_to_fine": True, "seed": 0, "val_fraction": 0.2, "test_fraction": 0.3}
    return measure_candidate(Known(name, 1000, 6, imagenet), embeddings, **options)  # type: ignore[arg-type]


def test_the_better_is_first_and_the_figures_are_checked(tmp_path: Path) -> None:
    good, bad = candidate("good", 0.1, 0.6), candidate("bad", 8.0, 0.8)
    found = rank_candidates([bad, good])
    assert [row["extractor"] for row in found["rows"]] == ["good", "bad"]
    assert [row["rank_interval"] for row in found["rows"]] == [[1, 1], [2, 2]]
    assert found["first_and_second"]["told_apart"] and found["first_and_second"]["interval"][0] > 0
    first, second = verdict(found)
    assert first.startswith("good is better than bad on these images (+") and "36 test images" in first
    assert second == "by published ImageNet accuracy one would take bad: rank 2 here, where good is first"
    fitted = [
        int(path[:3])
        for path, split in zip(good.result.splits.paths, good.result.splits.splits, strict=True)
        if split != "test"
    ]
    features, target = data(120, 6)
    rows = (2 * torch.eye(3, 6)[target] + 0.1 * features)[fitted]  # test rows are not scored
    assert good.log_me == log_me(rows, target[fitted]) and good.h_score == shrunk_h_score(rows, target[fitted])
    assert flat(found["rows"][0])["linear_top1_interval_low"] == found["rows"][0]["linear"]["top1_interval"][0]
    write_json(tmp_path / "rank.json", {**found, "verdict": verdict(found), "images": {"source": "photos"}})
    page = report_of(tmp_path).read_text(encoding="utf-8")
    assert "Good is better than bad on these images" in page and "transferkit rank photos --extractors good,bad" in page


def test_equal_ones_cannot_be_told_apart() -> None:
    found = rank_candidates([candidate("one", 0.8, None), candidate("two", 0.8, None), candidate("bad", 9.0, None)])
    (line,) = verdict(found)
    assert [row["rank"] for row in found["rows"]] == [1, 1, 3]
    assert (
        line.startswith("36 test images cannot tell one from two (+0.0 points")
        and not found["first_and_second"]["told_apart"]
    )


def test_groups_are_drawn_as_a_whole() -> None:
    grouped = candidate("one", 0.8, None, groups=True)
    assert len(set(grouped.units)) * 6 == len(grouped.units)


def test_other_images_cannot_be_ranked_together() -> None:
    with pytest.raises(UserError, match="the two probes tested"):
        rank_candidates([candidate("one", 0.5, None), candidate("two", 0.5, None, rows=90)])
    with pytest.raises(UserError, match="give two or more as `extractors`"):
        rank_candidates([candidate("one", 0.5, None)])
