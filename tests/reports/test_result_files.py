"""Files of results that somebody has changed: a report leaves out what it cannot read, and says so."""

import copy
import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.reports.example_results import write_json, write_run
from tests.reports.test_report import Page, check_numbers
from transferkit import evaluation
from transferkit.data.embeddings import Embeddings
from transferkit.reports.report import report_of

WRONG: tuple[Any, ...] = ("a word", None, [1], {"a": 1}, 7)
INTERVAL = {"top1": 0.75, "top1_interval": [0.55, 0.88]}
ISSUES = {
    "issue": ["label", "outlier"], "score": [0.9, 0.5], "path": ["a.jpg", "b.jpg"], "label": ["a", None],
    "split": [None, None], "suggested": ["b", None], "detail": ["", "far"],
}  # fmt: skip
PAIR = {"first": "a.jpg", "second": "b.jpg", "splits": ["train", "val"], "labels": ["a", None], "cosine": 0.99}


def run(root: Path) -> Path:
    made = write_run(root, ("a", "b"), images=False).run
    write_json(made / "leaks.json", {"count": 1, "threshold": 0.98, "images": 8, "of": 9, "pairs": [PAIR]})
    pq.write_table(pa.table(ISSUES), made / "audit.parquet")
    return made


def probe(root: Path) -> Path:
    linear = {
        **INTERVAL, "correct": 18, "rows": 24, "top5": None, "mean_per_class": 0.75, "per_class": {"a": 0.75},
        "ece": 0.1, "ece_calibrated": 0.05, "C": 0.1, "standardisation": "l2",
        "sweep": {"C": [0.01, 0.1], "val_top1": {"l2": [0.6, None]}},
    }  # fmt: skip
    content = {
        "linear": linear, "knn": INTERVAL, "nearest_class_mean": INTERVAL, "warnings": ["few"], "versions": {"x": "1"},
        "few_shot": {"seeds": [0], "curve": [{"n_per_class": 1, "mean": 0.3, "std": 0.05}]}, "options": {"fast": True},
        "images": {"source": "gone"}, "embeddings": {"extractor": "x"}, "splits": {"train": 1, "val": 1, "test": 1},
        "comparison": {"with": "b", "interval": [0.0, 0.1], "difference": 0.05, "mcnemar_p": 0.5},
    }  # fmt: skip
    write_json(root / "probe.json", content)
    return root


def ranking(root: Path) -> Path:
    row = {
        "rank": 1, "rank_interval": [1, 2], "extractor": "x", "linear": INTERVAL, "knn": INTERVAL, "log_me": 0.1,
        "h_score": 1.0, "parameters": 5, "width": 4, "imagenet": None,
    }  # fmt: skip
    content = {"rows": [row, row], "verdict": ["x"], "warnings": ["w"], "splits": {"test": 3}, "versions": {"x": "1"}}
    write_json(root / "rank.json", content)
    return root


def audit(root: Path) -> Path:
    pq.write_table(pa.table(ISSUES), root / "audit.parquet")
    counts = {"label": 1, "outlier": 1}
    content = {"rows": 2, "counts": counts, "remarks": ["r"], "images": {"source": "gone"}, "versions": {"x": "1"}}
    write_json(root / "audit.json", content)
    return root


def benchmark(root: Path) -> Path:
    lines = ["approach,dataset,top1,top1_low,top1_high,knn_top1,test,error,difference,mcnemar_p"]
    lines += ["a,photos,0.8,0.7,0.9,0.75,100,,,", "b,photos,0.9,0.8,0.95,0.85,100,,0.1,0.04", "c,photos,,,,,,full,,"]
    (root / "benchmark.csv").write_text("\n".join(lines) + "\n")
    return root


def evaluated(root: Path) -> Path:
    found = evaluation.measure(table())
    evaluation.save_overall(found, root / "similarity.json")
    evaluation.save_per_class(found, root / "per_class.csv")
    return root


def table(**metadata: Any) -> Embeddings:
    numbers = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return Embeddings(numbers, [f"{n:02d}" for n in range(12)], list("abcabcabcabc"), [None] * 12, metadata)


KINDS = {
    "run": run,
    "probe": probe,
    "ranking": ranking,
    "audit": audit,
    "benchmark": benchmark,
    "evaluation": evaluated,
}


def changed_objects(content: Any) -> Iterator[Any]:
    """The content with another value at each of its places, and without each of its keys."""
    for wrong, place in zip(itertools.cycle(WRONG), places(content), strict=False):
        for gone in (False, True):
            whole = copy.deepcopy(content)
            *above, last = place
            inner = whole
            for part in above:
                inner = inner[part]
            if gone and isinstance(inner, dict):
                del inner[last]
            else:
                inner[last] = wrong
            yield whole


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested dicts and lists."""
    if at:
        yield at
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*at, key))


def changed_rows(rows: list[list[str]]) -> Iterator[list[list[str]]]:
    """The rows with a word in each cell of a column, and a row that is too short or too long."""
    for column, row in itertools.product(range(len(rows[0])), (0, 1)):
        whole = copy.deepcopy(rows)
        whole[row][column] = "a word"
        yield whole
    yield [rows[0], rows[1][:1], *rows[2:]]
    yield [rows[0], [*rows[1], "more"], *rows[2:]]


def changed_columns(columns: pa.Table) -> Iterator[pa.Table]:
    """The table without each of its columns, and with numbers, or nothing, in it."""
    for place, name in enumerate(columns.column_names):
        yield columns.drop_columns([name])
        for values in (pa.array(range(columns.num_rows)), pa.nulls(columns.num_rows, pa.string())):
            yield columns.set_column(place, name, values)


def spoil(file: Path) -> Iterator[None]:
    """Change a file in every way, one after the other."""
    if file.suffix == ".csv":
        with file.open(newline="") as opened:
            rows = list(csv.reader(opened))
        for whole in changed_rows(rows):
            with file.open("w", newline="") as opened:
                csv.writer(opened).writerows(whole)
            yield
    elif file.suffix == ".parquet":
        for columns in changed_columns(pq.read_table(file)):
            pq.write_table(columns, file)
            yield
    elif file.suffix in (".json", ".yaml"):
        for content in changed_objects(yaml.safe_load(file.read_text())):
            file.write_text(json.dumps(content))
            yield


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in ("run", "probe", "ranking") else ()) for kind in KINDS],
)
def test_a_report_is_made_of_whatever_somebody_has_written(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path)
    report_of(folder)
    assert "is not as it was written" not in (folder / "report.html").read_text()
    for file in sorted(folder.glob("*.*")):
        before = file.read_bytes()
        for _ in spoil(file):
            report_of(folder)
        file.write_bytes(before)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_kind_are_those_of_its_files(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path)
    assert check_numbers(Page(report_of(folder)), folder).total() > 3


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("leaks.json", "leaks.json is not as it was written (KeyError: 'count')"),
        ("audit.parquet", "audit.parquet cannot be read (no column issue)"),
        ("metrics.csv", "metrics.csv is not as it was written (ValueError: could not convert string to float"),
    ],
)
def test_what_is_left_out_is_said(tmp_path: Path, file: str, said: str) -> None:
    folder = run(tmp_path)
    (folder / "leaks.json").write_text('{"images": 3}') if file == "leaks.json" else None
    (folder / "metrics.csv").write_text("epoch,val/loss\n1,low\n") if file == "metrics.csv" else None
    if file == "audit.parquet":
        pq.write_table(pa.table(ISSUES).drop_columns(["issue"]), folder / file)
    page = report_of(folder).read_text().replace("&#39;", "'")
    assert said in page


@pytest.mark.parametrize("versions", WRONG)
def test_an_evaluated_table_may_say_anything_of_its_versions(tmp_path: Path, versions: Any) -> None:
    page = report_of(evaluated(tmp_path), embeddings=table(versions=versions)).read_text()
    assert "Embedding map" in page
