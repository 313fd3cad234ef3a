"""Tables of predictions: ranks, ties, missing labels, and the files."""

from pathlib import Path

import pyarrow.parquet as pq
import torch

from transferkit.reports.predictions import (
    class_columns,
    most_probable,
    prediction_columns,
    ranked_columns,
    write_csv,
    write_parquet,
)

NAMES = ["ant", "bee", "cat"]
PROBABILITY = torch.tensor([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])


def test_names_of_the_columns() -> None:
    assert ranked_columns(1) == [("prediction", "probability")]
    assert ranked_columns(3)[2] == ("prediction_3", "probability_3")


def test_of_equal_probabilities_the_first_class_comes_first() -> None:
    ranked = most_probable(PROBABILITY, NAMES, 2)
    assert [names.to_pylist() for names, _ in ranked] == [["bee", "cat"], ["ant", "ant"]]
    assert [shares.tolist() for _, shares in ranked] == [[0.5, 0.75], [0.25, 0.125]]
    assert len(most_probable(PROBABILITY, NAMES, 9)) == 3


def test_many_rows_are_ranked_as_one() -> None:
    probability = torch.rand(2500, 7).softmax(1)
    names = [str(number) for number in range(7)]
    (first, shares), *_ = most_probable(probability, names, 1)
    assert first.to_pylist() == [str(code) for code in probability.argmax(1).tolist()]
    assert torch.equal(shares, probability.amax(1))


def test_files(tmp_path: Path) -> None:
    columns = prediction_columns(["b.jpg", 'a"b.jpg'], [None, "cat"], most_probable(PROBABILITY, NAMES, 1))
    write_parquet(columns | class_columns(PROBABILITY, NAMES), tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == [
        {"path": "b.jpg", "label": None, "prediction": "bee", "probability": 0.5,
         "probability/ant": 0.25, "probability/bee": 0.5, "probability/cat": 0.25},
        {"path": 'a"b.jpg', "label": "cat", "prediction": "cat", "probability": 0.75,
         "probability/ant": 0.125, "probability/bee": 0.125, "probability/cat": 0.75},
    ]  # fmt: skip
    write_csv(columns, tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()
    assert lines == [
        '"path","label","prediction","probability"', '"b.jpg",,"bee",0.5', '"a""b.jpg","cat","cat",0.75'
    ]  # fmt: skip
