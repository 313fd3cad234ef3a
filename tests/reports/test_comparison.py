"""Two runs or probes side by side: of labels and numbers, too, and how they were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from tests.reports.test_report import Page
from transferkit.errors import UserError
from transferkit.reports.comparison import versions_of
from transferkit.reports.report import report_of_two
from transferkit.reports.result_files import ResultFolder
from transferkit.runtime.json_files import write_json


def test_the_versions_of_both_are_named(tmp_path: Path) -> None:
    recorded = {"a": {"torch": "2.1", "numpy": "1", "python": "3.11"}, "b": {"torch": "2.2", "python": "3.11"}}
    for name, versions in recorded.items():
        write_json(tmp_path / name / "probe.json", {"versions": versions})
    found = versions_of(ResultFolder(tmp_path / "a"), ResultFolder(tmp_path / "b"))
    assert found == {"torch": "2.1, then 2.2", "numpy": "1, then –", "python": "3.11"}
    (tmp_path / "c").mkdir()
    assert versions_of(ResultFolder(tmp_path / "c"), ResultFolder(tmp_path / "c")) == {}


NAMES = ("cat", "dog", "<b>eel</b>")


def write_results(folder: Path, columns: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> Path:
    """Write what a comparison reads of a tested run."""
    write_json(folder / "metrics.json", dict(metrics or {}))
    pq.write_table(pa.table(dict(columns)), folder / "predictions.parquet")
    return folder


def joined(row: Sequence[bool]) -> str:
    return "|".join(sorted(name for name, has in zip(NAMES, row, strict=True) if has)) or "|"


def labels(noise: float, rows: int = 80) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Columns of predicted labels, the truth (N, K) and the scores (N, K)."""
    rng = np.random.default_rng(0)
    truth = rng.random((rows, len(NAMES))) < 0.4
    scores = np.clip(0.5 + 0.3 * (2 * truth - 1) + noise * rng.normal(size=truth.shape), 0, 1).astype(np.float32)
    columns = {"path": [f"{row}.jpg" for row in range(rows)], "label": [joined(row) for row in truth]}
    columns["prediction"] = [joined(row) for row in scores >= 0.5]
    return columns | {f"probability/{name}": scores[:, k] for k, name in enumerate(NAMES)}, truth, scores


def numbers(noise: float, rows: int = 80) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    truth = rng.normal(50, 10, rows)
    paths = [f"{row}.jpg" for row in range(rows)]
    return {"path": paths, "target": truth, "prediction": truth + noise * rng.normal(size=rows)}


def test_runs_of_several_labels(tmp_path: Path) -> None:
    (weak, truth, low), (good, _, high) = labels(0.6), labels(0.1)
    one = write_results(tmp_path / "a" / "0", weak, {"test/map": 0.5})
    other = write_results(tmp_path / "b" / "0", good, {"test/map": 0.75})
    page = Page(report_of_two(one, other, tmp_path / "two.html"))
    first, second = (average_precision_score(truth, scores) for scores in (low, high))
    assert page.of("difference") == pytest.approx([second - first])
    assert page.of("map first") == pytest.approx([first]) and page.of("map second") == pytest.approx([second])
    for side, scores in (("first", low), ("second", high)):
        for kind in ("macro", "micro"):
            assert page.of(f"f1_{kind} {side}") == pytest.approx([f1_score(truth, scores >= 0.5, average=kind)])
    assert "b/0 is better, and by more than chance." in page.text and "<b>eel</b>" in page.text
    wrong = [((scores >= 0.5) != truth).sum(1) for scores in (low, high)]
    assert f"{int((wrong[0] > wrong[1]).sum())} images, the largest change first." in page.text
    assert page.of("first") and "test/map" in page.text


def test_without_probabilities_labels_are_compared_by_f1(tmp_path: Path) -> None:
    folders = []
    for name, noise in (("a", 0.6), ("b", 0.6)):
        columns = {key: value for key, value in labels(noise)[0].items() if not key.startswith("probability/")}
        folders.append(write_results(tmp_path / name / "0", columns))
    page = Page(report_of_two(*folders, tmp_path / "two.html"))
    assert "difference in macro F1" in page.text and "There is no difference." in page.text
    assert "average precision: the probability of each label was not written" in page.text


def test_runs_of_a_number(tmp_path: Path) -> None:
    weak, good = numbers(8), numbers(2)
    one, other = write_results(tmp_path / "a" / "0", weak), write_results(tmp_path / "b" / "0", good)
    page = Page(report_of_two(one, other, tmp_path / "two.html"))
    for side, columns in (("first", weak), ("second", good)):
        truth, prediction = columns["target"], columns["prediction"]
        assert page.of(f"mae {side}") == pytest.approx([mean_absolute_error(truth, prediction)])
        assert page.of(f"r2 {side}") == pytest.approx([r2_score(truth, prediction)])
    assert "b/0 is better, and by more than chance." in page.text
    page = Page(report_of_two(other, one, tmp_path / "two.html"))
    assert "b/0 is better, and by more than chance." in page.text
    less = [abs(each["prediction"] - each["target"]) for each in (weak, good)]
    assert f"{int((less[1] < less[0]).sum())} images, the largest change first." in page.text


def test_one_number_throughout_is_compared_by_its_error(tmp_path: Path) -> None:
    flat = {**numbers(8), "target": np.full(80, 3.0)}
    one, other = write_results(tmp_path / "a" / "0", flat), write_results(tmp_path / "b" / "0", flat)
    page = Page(report_of_two(one, other, tmp_path / "two.html"))
    assert "difference in mean absolute error" in page.text and "R²" not in page.text


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path) -> None:
    rows = {"path": ["0.jpg"], "label": ["cat"], "prediction": ["cat"], "probability": [0.5]}
    places = {
        "classes": write_results(tmp_path / "classes", rows),
        "labels": write_results(tmp_path / "labels", labels(0.1)[0]),
        "number": write_results(tmp_path / "number", numbers(1)),
    }
    words = {"classes": "one class", "labels": "several labels", "number": "a number"}
    for one, other in (("classes", "labels"), ("labels", "number"), ("number", "classes")):
        said = rf"predicts {words[one]} per image, .*{other} {words[other]} per image; give two that predict the same$"
        with pytest.raises(UserError, match=said):
            report_of_two(places[one], places[other], tmp_path / "two.html")
    others = {key.replace("cat", "cow"): value for key, value in labels(0.1)[0].items()}
    with pytest.raises(UserError, match="predict other labels"):
        report_of_two(places["labels"], write_results(tmp_path / "cows", others), tmp_path / "two.html")
    elsewhere = {**numbers(1), "path": [f"x{row}.jpg" for row in range(80)]}
    with pytest.raises(UserError, match="judged no image in common"):
        report_of_two(places["number"], write_results(tmp_path / "elsewhere", elsewhere), tmp_path / "two.html")
    unknown = {"path": ["0.jpg"], "label": pa.array([None], pa.string()), "prediction": ["cat"]}
    with pytest.raises(UserError, match="has no predictions of labeled images"):
        report_of_two(places["labels"], write_results(tmp_path / "unknown", unknown), tmp_path / "two.html")
