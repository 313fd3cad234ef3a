"""The probe of a number per image: ridge regression, reported on test."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.seen import remember_paths
from transferkit.data.splits import HELD_OUT
from transferkit.data.targets import NAME_OF_NUMBER, TARGETS, number_of
from transferkit.probe.classifier import LinearClassifier
from transferkit.probe.own_paths import with_own_paths
from transferkit.probe.protocol import PROTOCOL, Predictions, ProbeResult, splits_table
from transferkit.probe.ridge import ALPHAS, KINDS, Ridge, fit_ridge
from transferkit.probe.row_splits import feature_warnings, split_members
from transferkit.probe.standardize import Kind
from transferkit.reports.predictions import number_predictions
from transferkit.runtime.versions import versions
from transferkit.similarity import regression


def probe_numbers(
    embeddings: Embeddings, *, seed: int = 0, val_fraction: float = 0.15, test_fraction: float = HELD_OUT
) -> ProbeResult:
    """Fit ridge regression on train and val, standardization and strength chosen by leave-one-out; report on test.

    Args:
        embeddings: table with numbers; its splits are kept, missing ones are drawn.
        seed: seed of the drawn splits.
        val_fraction: share of train, if val is drawn.
        test_fraction: share of all rows, if test is drawn.

    Raises:
        UserError: the rows cannot be split, or all numbers are equal.
    """
    embeddings = with_own_paths(embeddings)
    members = split_members(embeddings, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    labels = embeddings.labels
    TARGETS["number"].check([labels[row] for row in members.train], "the embeddings")
    target = torch.tensor([number_of(label) or 0.0 for label in labels], dtype=torch.float64)
    features, fitted = embeddings.embedding.float(), members.train + members.val
    warnings = members.warnings + feature_warnings(features[members.train])

    def fit(rows: list[int]) -> tuple[Ridge, LinearClassifier]:
        found = fit_ridge(features[rows], target[rows])
        fitted_on = remember_paths([embeddings.paths[row] for row in rows])
        return found, as_classifier(found, embeddings.metadata, fitted_on)

    (final, classifier), (_, start) = fit(fitted), fit(members.train)
    prediction = classifier.logits(features[members.test])[:, 0].double()
    truth = target[members.test]
    if final.alpha in (ALPHAS[0], ALPHAS[-1]):
        warnings.append(f"the best strength, {final.alpha:g}, is at an end of the grid; a better one may lie beyond")
    options = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    report: dict[str, Any] = {
        "protocol": PROTOCOL,
        "target": "number",
        "options": options,
        "embeddings": dict(embeddings.metadata),
        "versions": versions(),
        "splits": members.counts(),
        "class_names": [NAME_OF_NUMBER],
        "linear": {
            **regression.measures(prediction, truth),
            "intervals": {name: list(ends) for name, ends in regression.intervals(prediction, truth).items()},
            "rows": len(truth),
            "standardisation": final.standardization,
            "alpha": final.alpha,
            "leave_one_out_rmse": float(final.errors.min().sqrt()),
            "mean_absolute_deviation": float((truth - target[fitted].mean()).abs().mean()),
            "fitted_rows": len(fitted),
        },
        "warnings": warnings,
    }
    paths = tuple(embeddings.paths[row] for row in members.test)
    texts = tuple(str(labels[row]) for row in members.test)
    return ProbeResult(
        report,
        classifier,
        start,
        Predictions(paths, texts, tuple(map(repr, prediction.tolist())), torch.empty(0)),
        splits_table(embeddings, members),
        number_predictions(paths, texts, prediction),
    )


def as_classifier(fit: Ridge, metadata: Any, fitted_on: str) -> LinearClassifier:
    """Return a ridge regression as the linear layer that a probe saves."""
    return LinearClassifier(
        fit.weight, fit.bias, (NAME_OF_NUMBER,), fit.standardization, 1 / fit.alpha, 1.0, metadata, fitted_on, "number"
    )


def start_numbers(
    train: Tensor, target: Tensor, kinds: Sequence[Kind], row_weights: Tensor | None = None
) -> LinearClassifier:
    """Return what fine-tuning starts from: ridge regression on train alone.

    Args:
        train: `(N, D)`.
        target: `(N, 1)`.
        kinds: standardizations to choose from.
        row_weights: `(N,)` or None.
    """
    allowed = [kind for kind in KINDS if kind in kinds]
    return as_classifier(fit_ridge(train, target[:, 0], kinds=allowed, row_weights=row_weights), {}, "")
