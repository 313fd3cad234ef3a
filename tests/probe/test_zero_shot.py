"""Predictions from words: probabilities, the files, and metrics by scikit-learn."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

from transferkit.data.embeddings import Embeddings
from transferkit.probe.zero_shot import MOST_COLUMNS, ZeroShot, save_zero_shot


def found(classes: int, sigmoid: bool = False, labels: tuple[str | None, ...] | None = None) -> ZeroShot:
    noise = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(40, classes, generator=noise)
    names = tuple(f"class {number}" for number in range(classes))
    own = labels or tuple(names[row * 7 % classes] for row in range(40))
    table = Embeddings(
        torch.randn(40, 4, generator=noise), [f"{row:02}.jpg" for row in range(40)], own, [None] * 40, {}
    )
    probability = logits.sigmoid() if sigmoid else logits.softmax(1)
    return ZeroShot(table, names, ("{}",), logits, probability, sigmoid, {"extractor": "clip"})


@pytest.mark.parametrize("classes", [3, 9])
def test_metrics_by_scikit_learn(classes: int) -> None:
    one = found(classes)
    truth, preds = list(one.embeddings.labels), [one.class_names[best] for best in one.logits.argmax(1)]
    expected = {"test/acc": accuracy_score(truth, preds), "test/f1_macro": f1_score(truth, preds, average="macro")}
    if classes > 5:
        numbers = [one.class_names.index(str(label)) for label in truth]
        expected["test/acc_top5"] = top_k_accuracy_score(numbers, one.logits.numpy(), k=5, labels=range(classes))
    values = one.metrics
    assert 0 <= values.pop("test/ece") <= 1
    assert values == pytest.approx(expected, abs=1e-6)
    assert "test/ece" not in found(classes, sigmoid=True).metrics  # its probabilities are not of one class in all


def test_labels_that_are_not_among_the_classes_are_not_scored() -> None:
    labels = ("class 1", None, "another") + ("class 0",) * 37
    one = found(3, labels=labels)
    assert one.known == [0, *range(3, 40)]
    right = [one.class_names[int(one.logits[row].argmax())] == labels[row] for row in one.known]
    assert one.metrics["test/acc"] == pytest.approx(np.mean(right), abs=1e-6)
    assert found(3, labels=(None,) * 40).metrics == {}


def test_the_files(tmp_path: Path) -> None:
    one = found(7, sigmoid=True)
    files = {path.name: path for path in save_zero_shot(one, tmp_path / "out")}
    with files["predictions.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(one.embeddings.paths)
    ranked = one.probability.argsort(1, descending=True)
    assert [row["prediction_5"] for row in rows] == [one.class_names[best] for best in ranked[:, 4]]
    table = pq.read_table(files["predictions.parquet"])
    np.testing.assert_allclose(table["probability/class 6"].to_numpy(), one.probability[:, 6])
    said = json.loads(files["zeroshot.json"].read_text())
    assert said["classes"] == list(one.class_names) and said["sigmoid"] and said["scored"] == 40
    assert json.loads(files["metrics.json"].read_text()) == one.metrics
    assert torch.equal(Embeddings.load(files["embeddings.parquet"]).embedding, one.embeddings.embedding)


def test_thousands_of_classes_have_no_column_each(tmp_path: Path) -> None:
    save_zero_shot(found(MOST_COLUMNS + 1), tmp_path)
    assert "probability/class 0" not in pq.read_schema(tmp_path / "predictions.parquet").names
