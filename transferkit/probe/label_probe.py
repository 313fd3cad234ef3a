"""The probe of several labels per image: one classifier per label against the rest, reported on test."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transferkit.data.embeddings import Embeddings
from transferkit.data.seen import remember_paths
from transferkit.data.splits import HELD_OUT
from transferkit.data.targets import TARGETS
from transferkit.errors import listed
from transferkit.probe.classifier import LinearClassifier
from transferkit.probe.linear import Fitted, Sweep, fit_linear, logits_of, sweep
from transferkit.probe.other_objectives import OneVsRestObjective
from transferkit.probe.own_paths import with_own_paths
from transferkit.probe.protocol import PROTOCOL, Predictions, ProbeResult, edge_warnings, splits_table, sweep_record
from transferkit.probe.row_splits import feature_warnings, split_members
from transferkit.probe.standardize import KINDS, Kind
from transferkit.reports.predictions import class_columns, label_predictions
from transferkit.runtime.versions import versions
from transferkit.similarity.label_scores import average_precision, best_thresholds, score_labels

TIE = 1e-7  # weight of the loss beside mAP: it decides between equal ones, which few images often give


def mean_precision(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over labels of the average precision of M classifiers; of equal ones the lower loss is higher.

    Args:
        logits: `(N, M, K)`.
        target: `(N, K)`.

    Returns:
        `(M,)` float64; the loss is weighted by 1e-7.
    """
    means = [average_precision(logits[:, model], target).nanmean() for model in range(logits.shape[1])]
    truth = target[:, None].expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(logits.double(), truth.double(), reduction="none").mean((0, 2))
    return torch.stack(means).nan_to_num(0.0) - TIE * loss


def sweep_labels(
    train: Tensor, target: Tensor, val: Tensor, val_target: Tensor, kinds: Sequence[Kind] = KINDS, **options: Any
) -> Sweep:
    """Choose standardization and C, the same for all labels, by mAP on val (of equal ones by the loss), see `sweep`.

    Args:
        train: `(N, D)`.
        target: `(N, K)`, 1 where a row has the label.
        val: `(V, D)`.
        val_target: `(V, K)`.
        kinds: standardizations.
        options: of the sweep.
    """
    how: dict[str, Any] = {"objective": OneVsRestObjective, "score": mean_precision, **options}
    return sweep(train, target, val, val_target, target.shape[1], kinds=kinds, **how)


def probe_labels(
    embeddings: Embeddings,
    *,
    coarse_to_fine: bool = False,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = HELD_OUT,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> ProbeResult:
    """Sweep standardization and C on train, choose them and the thresholds on val, fit on both, report on test.

    Args:
        embeddings: table with labels; its splits are kept, missing ones are drawn by iterative stratification.
        coarse_to_fine: fit every fourth C, then only those beside the best.
        seed: seed of the drawn splits.
        val_fraction: share of train, if val is drawn.
        test_fraction: share of all rows, if test is drawn.
        tolerance: largest entry of the gradient at the end of a fit.
        max_iterations: limit per fit.

    Raises:
        UserError: the rows cannot be split, or a label is there for all training rows.
    """
    embeddings = with_own_paths(embeddings)
    members = split_members(embeddings, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    kind, labels = TARGETS["labels"], embeddings.labels
    kind.check([labels[row] for row in members.train], "the embeddings")
    names = kind.names(labels[row] for row in members.train)
    target, features = kind.encode(labels, names), embeddings.embedding.float()
    warnings = members.warnings + feature_warnings(features[members.train])
    for name, rows in (("val", members.val), ("test", members.test)):
        if lacking := sorted(set(kind.names(labels[row] for row in rows)) - set(names)):
            warnings.append(f"labels of {name} that train lacks, left out: {listed(lacking)}")
    fitted = members.train + members.val
    limits: dict[str, Any] = {"tolerance": tolerance, "max_iterations": max_iterations}
    train, val = ((features[rows], target[rows]) for rows in (members.train, members.val))
    swept = sweep_labels(*train, *val, coarse_to_fine=coarse_to_fine, **limits)
    best = swept.best
    thresholds = thresholds_of(best, features[members.val], target[members.val], names)
    how: dict[str, Any] = {"standardization": best.standardization, "c": best.c, **limits}
    final = fit_linear(features[fitted], target[fitted], len(names), objective=OneVsRestObjective, **how)

    def classifier_of(fit: Fitted, rows: list[int]) -> LinearClassifier:
        paths = remember_paths([embeddings.paths[row] for row in rows])
        return as_classifier(fit, names, embeddings.metadata, paths, thresholds)

    classifier = classifier_of(final, fitted)
    probability = classifier.probabilities(features[members.test])
    found = probability >= torch.tensor(list(thresholds.values()), dtype=probability.dtype)
    warnings += edge_warnings(swept)
    if not final.converged:
        warnings.append(f"the reported fit did not converge: gradient {final.gradient:.1e}")
    options = {"fast": coarse_to_fine, "seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    report: dict[str, Any] = {
        "protocol": PROTOCOL,
        "target": "labels",
        "options": options,
        "embeddings": dict(embeddings.metadata),
        "versions": versions(),
        "splits": members.counts(),
        "class_names": names,
        "linear": {
            **label_measures(probability, found, target[members.test], names),
            "thresholds": thresholds,
            "rows": len(members.test),
            "standardisation": final.standardization,
            "C": final.c,
            "val_map": swept.accuracy.nan_to_num(-1).max().item(),
            "fitted_rows": len(fitted),
            "converged": final.converged,
            "gradient": final.gradient,
            "iterations": final.iterations,
            "sweep": {**sweep_record(swept, "val_map"), "fast": coarse_to_fine, **limits},
        },
        "warnings": warnings,
    }
    paths = tuple(embeddings.paths[row] for row in members.test)
    texts = tuple(str(labels[row]) for row in members.test)
    columns = label_predictions(paths, texts, found, names) | class_columns(probability.float(), names)
    return ProbeResult(
        report,
        classifier,
        classifier_of(best, members.train),
        Predictions(paths, texts, tuple(columns["prediction"].to_pylist()), torch.empty(0)),
        splits_table(embeddings, members),
        columns,
    )


def label_measures(probability: Tensor, found: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Return mAP, macro and micro F1, and average precision, F1 and the number of rows of each label.

    The means are over labels that a test row has.

    Args:
        probability: `(N, K)`.
        found: `(N, K)` bool, the predicted labels.
        target: `(N, K)`.
        names: of the labels.
    """
    measured = score_labels(probability, found, target)
    per_label = {
        name: {"ap": float(ap), "f1": float(f1), "rows": int(count)}
        for name, ap, f1, count in zip(names, measured.ap, measured.f1, target.sum(0), strict=True)
        if count
    }
    return {
        "map": float(measured.map),
        "f1_macro": float(measured.f1_macro),
        "f1_micro": float(measured.f1_micro),
        "per_class": per_label,
    }


def thresholds_of(fit: Fitted, val: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return the probability of each label from which on a row has it: that of the highest F1 on val."""
    scores = logits_of(val, fit.weight, fit.bias, fit.standardization).sigmoid()
    return dict(zip(names, best_thresholds(scores, target).tolist(), strict=True))


def as_classifier(
    fit: Fitted, names: Sequence[str], metadata: Any, fitted_on: str, thresholds: dict[str, float]
) -> LinearClassifier:
    """Return one-vs-rest classifiers as the linear layer that a probe saves."""
    return LinearClassifier(
        fit.weight, fit.bias, tuple(names), fit.standardization, fit.c, 1.0, metadata, fitted_on, "labels", thresholds
    )


def start_labels(
    train: Tensor,
    target: Tensor,
    val: Tensor,
    val_target: Tensor,
    names: Sequence[str],
    kinds: Sequence[Kind],
    class_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> LinearClassifier:
    """Return what fine-tuning starts from: the classifiers on train, with C chosen on val; see :func:`sweep_labels`.

    Args:
        train: `(N, D)`.
        target: `(N, K)`.
        val: `(V, D)`.
        val_target: `(V, K)`.
        names: K labels.
        kinds: standardizations to choose from.
        class_weights: `(K,)` weight of the rows that have a label, or None.
        row_weights: `(N,)` or None.
    """
    objective = partial(OneVsRestObjective, class_weights=class_weights, row_weights=row_weights)
    best = sweep_labels(train, target, val, val_target, kinds, objective=objective).best
    return as_classifier(best, names, {}, "", thresholds_of(best, val, val_target, names))
