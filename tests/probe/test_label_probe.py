"""The probe of several labels: what it reports is what scikit-learn says of its predictions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler, normalize

from transferkit.data.embeddings import Embeddings
from transferkit.data.targets import TARGETS, joined_labels
from transferkit.errors import UserError
from transferkit.probe import ProbeResult, label_probe, probe_embeddings, probe_targets
from transferkit.probe.classifier import LinearClassifier

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def table() -> Embeddings:
    noise = torch.Generator().manual_seed(0)
    has = torch.rand(160, 3, generator=noise) < torch.tensor([0.5, 0.3, 0.15])
    embedding = torch.randn(160, 6, generator=noise) + torch.cat([has, has], 1) * 1.2
    labels = [joined_labels(name for name, own in zip(NAMES, row, strict=True) if own) for row in has.tolist()]
    paths = [f"{row:03d}.png" for row in range(160)]
    return Embeddings(embedding, paths, labels, [None] * 160, {"extractor": "x"}, None, "labels")


@pytest.fixture(scope="module")
def result(table: Embeddings) -> ProbeResult:
    return probe_targets(table)


def test_it_reports_what_scikit_learn_measures(table: Embeddings, result: ProbeResult) -> None:
    linear = result.report["linear"]
    rows = [table.row_of[path] for path in result.predictions.paths]
    target = TARGETS["labels"].encode([table.labels[row] for row in rows], NAMES).numpy()
    probability = result.classifier.probabilities(table.embedding[rows]).numpy()
    found = probability >= np.array([linear["thresholds"][name] for name in NAMES])
    assert linear["map"] == pytest.approx(average_precision_score(target, probability, average="macro"))
    assert linear["f1_macro"] == pytest.approx(f1_score(target, found, average="macro"))
    assert linear["f1_micro"] == pytest.approx(f1_score(target, found, average="micro"))
    expected = average_precision_score(target, probability, average=None)
    assert [linear["per_class"][name]["ap"] for name in NAMES] == pytest.approx(expected.tolist())
    texts = [joined_labels(name for name, own in zip(NAMES, row, strict=True) if own) for row in found.tolist()]
    assert result.columns is not None and result.columns["prediction"].to_pylist() == texts


def test_its_classifier_is_scikit_learns_one_against_the_rest(table: Embeddings, result: ProbeResult) -> None:
    rows = [row for row, split in enumerate(splits_of(table, result)) if split != "test"]
    scalers = {"zscore": StandardScaler().fit_transform, "l2": normalize, "none": np.asarray}
    inputs = scalers[result.classifier.standardization](table.embedding[rows].numpy())
    target = TARGETS["labels"].encode([table.labels[row] for row in rows], NAMES).numpy()
    model = OneVsRestClassifier(LogisticRegression(C=result.classifier.c, max_iter=10_000, tol=1e-8))
    expected = model.fit(inputs, target).predict_proba(inputs)
    ours = result.classifier.probabilities(table.embedding[rows]).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_thresholds_are_chosen_on_val_alone(table: Embeddings, result: ProbeResult) -> None:
    splits = splits_of(table, result)
    rows = [row for row, split in enumerate(splits) if split == "val"]
    target = TARGETS["labels"].encode([table.labels[row] for row in rows], NAMES).numpy()
    probability = result.start.probabilities(table.embedding[rows]).numpy()
    for number, name in enumerate(NAMES):
        level = result.report["linear"]["thresholds"][name]
        reached = f1_score(target[:, number], probability[:, number] >= level)
        tried = [f1_score(target[:, number], probability[:, number] >= other) for other in probability[:, number]]
        assert reached == pytest.approx(max(tried))


def test_a_saved_classifier_knows_its_labels(result: ProbeResult, tmp_path: pytest.TempPathFactory) -> None:
    result.classifier.save(f"{tmp_path}/c.safetensors")
    read = LinearClassifier.load(f"{tmp_path}/c.safetensors")
    assert (read.kind, read.thresholds, read.class_names) == ("labels", result.classifier.thresholds, tuple(NAMES))


def test_a_label_of_every_row_and_the_probe_of_classes_are_refused(table: Embeddings) -> None:
    every = [joined_labels([*(label or "").split("|"), "z"]) for label in table.labels]
    with pytest.raises(UserError, match="every training image of the embeddings has the label 'z'"):
        probe_targets(Embeddings(table.embedding, table.paths, every, table.splits, {}, None, "labels"))
    with pytest.raises(UserError, match="needs one class per image, not several labels"):
        probe_embeddings(table)


def splits_of(table: Embeddings, result: ProbeResult) -> list[str | None]:
    split_of = dict(zip(result.splits.paths, result.splits.splits, strict=True))
    return [split_of.get(path) for path in table.paths]


def test_a_best_c_at_the_edge_is_reported(table: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_probe, "edge_warnings", lambda swept: [f"the best of {len(swept.c_grid)} C"])
    assert "the best of 45 C" in probe_targets(table, coarse_to_fine=True).report["warnings"]
