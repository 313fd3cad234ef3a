"""The probe of a number: what it reports is what scikit-learn and SciPy say of its predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.preprocessing import StandardScaler, normalize

from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.probe import probe_targets, save_probe
from transferkit.probe.ridge import ALPHAS
from transferkit.reports.report import report_of
from transferkit.runtime.json_files import read_json


@pytest.fixture(scope="module")
def table() -> Embeddings:
    noise = torch.Generator().manual_seed(0)
    embedding = torch.randn(120, 10, generator=noise)
    target = 50 + 7 * embedding[:, 0] + 3 * embedding[:, 1] + 2 * torch.randn(120, generator=noise)
    paths = [f"{row:03d}.png" for row in range(120)]
    labels = [repr(value) for value in target.double().tolist()]
    return Embeddings(embedding, paths, labels, [None] * 120, {}, None, "number")


def test_it_is_ridge_cv_on_train_and_val(table: Embeddings) -> None:
    result = probe_targets(table)
    linear, split_of = result.report["linear"], dict(zip(result.splits.paths, result.splits.splits, strict=True))
    numbers = np.array([float(label or 0) for label in table.labels])
    test = np.array([split_of[path] == "test" for path in table.paths])
    scale = normalize
    if linear["standardisation"] == "zscore":
        scale = StandardScaler().fit(table.embedding[~test].double().numpy()).transform
    rows = scale(table.embedding.double().numpy())
    expected = RidgeCV(alphas=ALPHAS).fit(rows[~test], numbers[~test])
    assert linear["alpha"] == pytest.approx(expected.alpha_)
    found = result.classifier.logits(table.embedding)[:, 0].numpy()
    np.testing.assert_allclose(found, expected.predict(rows), rtol=1e-5)  # the classifier is float32
    assert linear["mae"] == pytest.approx(mean_absolute_error(numbers[test], found[test]), rel=1e-5)
    assert linear["r2"] == pytest.approx(r2_score(numbers[test], found[test]), rel=1e-5)
    assert linear["spearman"] == pytest.approx(spearmanr(numbers[test], found[test]).statistic, rel=1e-5)
    for name, (low, high) in linear["intervals"].items():
        assert low <= linear[name] <= high
    assert result.columns is not None and result.columns["prediction"].to_pylist() == pytest.approx(
        found[test].tolist(), rel=1e-5
    )


def test_equal_numbers_of_test_have_no_r2(table: Embeddings, tmp_path: Path) -> None:
    """What is undefined is null in JSON, and the report says why."""
    splits = ["test" if row < 20 else "train" for row in range(120)]
    labels = ["50.0" if row < 20 else label for row, label in enumerate(table.labels)]
    result = probe_targets(Embeddings(table.embedding, table.paths, labels, splits, {}, None, "number"))
    save_probe(result, tmp_path)
    linear = read_json(tmp_path / "probe.json")["linear"]
    assert (linear["r2"], linear["intervals"]["r2"]) == (None, [None, None]) and linear["mae"] > 0
    assert "All of these images have the same number." in report_of(tmp_path).read_text(encoding="utf-8")


def test_equal_numbers_are_refused(table: Embeddings) -> None:
    equal = Embeddings(table.embedding, table.paths, ["1.0"] * 120, table.splits, {}, None, "number")
    with pytest.raises(UserError, match="all training images of the embeddings have the target 1"):
        probe_targets(equal)
