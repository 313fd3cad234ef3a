"""The files of a benchmark's table: all numbers in the CSV file, and LaTeX that compiles."""

import csv
import io
import json

import pytest
from scipy.stats import binomtest

from transferkit.probe.benchmark.benchmark_table import as_csv, as_latex, for_latex, tables_of
from transferkit.probe.benchmark.cells import Cell, over_seeds

CELL = Cell(
    "a_1", "50 % & more", parameters=10**6, embed_dim=3, library="torchvision", test=40, top1=0.9, knn_top1=0.75,
    top1_interval=(0.8, 0.95), mean_per_class=0.9, few_shot={"16": (0.8, 0.1), "2": (0.6, 0.2), "1": (0.5, 0.2)},
    cosine_gap=0.1, c=0.1, standardization="l2", weights_sha256="ab", preprocessing={"crop": [2, 2]}, seed=3,
)  # fmt: skip


def test_the_csv_file_has_what_a_paper_needs() -> None:
    text = as_csv([Cell("bad", "x", error="gone"), CELL], {})
    _, row = csv.DictReader(io.StringIO(text))
    oracle = binomtest(30, 40).proportion_ci(method="wilson")
    assert (float(row["knn_top1_low"]), float(row["knn_top1_high"])) == pytest.approx((oracle.low, oracle.high))
    assert (row["c"], row["standardization"], row["seed"], row["weights_sha256"]) == ("0.1", "l2", "3", "ab")
    assert json.loads(row["preprocessing"]) == {"crop": [2, 2]}
    assert [name for name in row if name.startswith("shot_") and name.endswith("mean")] == [
        "shot_1_mean", "shot_2_mean", "shot_16_mean",
    ]  # fmt: skip


def test_the_table_for_latex() -> None:
    rows = tables_of([CELL], {})["class"]
    lines = as_latex(rows).splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert lines[1] == rf"\begin{{tabular}}{{ll{'r' * (len(rows[0]) - 2)}}}"
    assert lines[2] == r"\toprule" and lines[4] == r"\midrule" and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[5].startswith(r"50 \% \& more & a\_1 & 3 & ") and lines[5].endswith(r" \\")
    for line in (lines[3], lines[5]):
        assert line.replace(r"\&", "").count("&") == len(rows[0]) - 1
    assert as_latex([]).startswith("%")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b #1 {c}", r"a\_b \#1 \{c\}"),
        ("1 ± 2 – 3", r"1 $\pm$ 2 -- 3"),
        ("\\x~^", r"\textbackslash{}x\textasciitilde{}\textasciicircum{}"),
        ("[0]\n", "{[}0] "),
    ],
)
def test_special_characters_are_text_in_latex(text: str, escaped: str) -> None:
    assert for_latex(text) == escaped


def test_a_seed_that_failed_is_left_out_and_named() -> None:
    failed = Cell("a_1", "x", seed=4, error="no room")
    cell = over_seeds(CELL, [failed])
    assert cell.seeds == [3] and cell.over_seeds["top1"] == (0.9, 0.0)
    assert cell.warnings == ["seed 4 could not be measured: no room"]
    assert over_seeds(CELL, []) == CELL
