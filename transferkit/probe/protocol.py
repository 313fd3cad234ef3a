"""The whole probe: one embeddings table in, a report, a classifier and its test predictions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, table_of
from transferkit.data.seen import remember_paths
from transferkit.data.splits import HELD_OUT
from transferkit.errors import UserError, listed
from transferkit.probe.calibration import TEMPERATURES, fit_temperature
from transferkit.probe.classifier import LinearClassifier
from transferkit.probe.fewshot import SEEDS, SHOTS, few_shot_curve
from transferkit.probe.knn import K_NEIGHBOURS, knn_predictions, nearest_class_mean
from transferkit.probe.linear import Fitted, Sweep, fit_linear, logits_of, sweep
from transferkit.probe.row_splits import Parts, divide
from transferkit.probe.scores import scores, top1
from transferkit.probe.standardize import Kind
from transferkit.runtime.versions import versions
from transferkit.similarity import unit_rows
from transferkit.similarity.paired import PairedComparison, compare_paired

PROTOCOL = 1
"""Raised when the same embeddings would give other numbers."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of each test image, for a paired comparison.

    Attributes:
        paths: of the test images, sorted.
        labels: true class names.
        preds: predicted class names.
        confidence: `(T,)` float32, calibrated probability of the predicted class.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    preds: tuple[str, ...]
    confidence: Tensor

    @property
    def correct(self) -> Tensor:
        """`(T,)` bool."""
        return torch.tensor([label == pred for label, pred in zip(self.labels, self.preds, strict=True)])


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        report: plain types, to be written as JSON.
        classifier: the one reported, fitted on train and val.
        start: fitted on train alone, to start a fit from: it leaves val to select on.
        predictions: of ``classifier`` on test.
        splits: the images that were used, with the split that each was used as.
    """

    report: dict[str, Any]
    classifier: LinearClassifier
    start: LinearClassifier
    predictions: Predictions
    splits: ImageTable


def probe_embeddings(
    embeddings: Embeddings,
    *,
    fast: bool = False,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = HELD_OUT,
    shots: Sequence[int] = SHOTS,
    few_shot_seeds: Sequence[int] = SEEDS,
    few_shot_standardisation: Kind = "l2",
    few_shot_c: float = 100.0,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> ProbeResult:
    """Measure what embeddings are worth, by the protocol that selects on validation and reports on test.

    The linear probe sweeps standardisation and C on train, chooses on val, fits the choice on train + val and
    reports on test. Its temperature is fitted on the val logits of the classifier that has not seen val. kNN
    chooses k on val likewise, with train + val as references for test. Few-shot fits training rows only.

    Args:
        embeddings: with labels; its splits are kept, missing ones drawn (see `divide`).
        fast: sweep coarse to fine.
        seed: of the drawn splits.
        val_fraction: of train, where val is drawn.
        test_fraction: of all, where test is drawn.
        shots: images a class of the few-shot curve.
        few_shot_seeds: of its draws.
        few_shot_standardisation: `none`, `l2` or `zscore`; fixed, since few-shot has no rows to choose it on.
        few_shot_c: fixed likewise.
        tolerance: largest entry of the gradient at the end of a fit.
        max_iterations: of each fit.

    Raises:
        UserError: see `divide`.
    """
    parts = divide(embeddings, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    known, rows = parts.known, arrange(embeddings.embedding, parts)
    table, target = rows.features, rows.target
    limits: dict[str, Any] = {"tolerance": tolerance, "max_iterations": max_iterations}
    train, val, fit, test = table[rows.train], table[rows.val], table[rows.fit], table[rows.test]
    swept = sweep(train, target[rows.train], val, target[rows.val], known, fast=fast, **limits)
    best = swept.best
    seen = slice(len(train), len(fit))
    on_val = logits_of(table[seen], best.weight, best.bias, best.standardisation)
    temperature = determined(fit_temperature(on_val, target[seen]))
    final = fit_linear(fit, target[rows.fit], known, standardisation=best.standardisation, c=best.c, **limits)
    paths = {name: [embeddings.paths[row] for row in getattr(parts, name)] for name in ("train", "val", "test")}

    def classifier_of(fit: Fitted, fitted: list[str]) -> LinearClassifier:
        names = parts.class_names[:known]
        facts = (fit.standardisation, fit.c, temperature, embeddings.metadata, remember_paths(fitted))
        return LinearClassifier(fit.weight, fit.bias, names, *facts)

    classifier = classifier_of(final, paths["train"] + paths["val"])
    logits = classifier.logits(test)
    warnings = parts.warnings + fit_warnings(swept, final, temperature, limits)
    options = {"fast": fast, "seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    report = {
        "protocol": PROTOCOL,
        "options": options,
        "embeddings": dict(embeddings.metadata),
        "versions": versions(),
        "splits": {**parts.origin, "train": len(parts.train), "val": len(parts.val), "test": len(parts.test)},
        "class_names": list(parts.class_names[:known]),
        "linear": {
            **scores(logits, target[rows.test], parts.class_names, temperature),
            "standardisation": final.standardisation,
            "C": final.c,
            "temperature": temperature,
            "val_top1": swept.accuracy.nan_to_num(-1).max().item(),
            "fitted_rows": len(fit),
            "converged": final.converged,
            "gradient": final.gradient,
            "iterations": final.iterations,
            "sweep": {**sweep_record(swept), "fast": fast, **limits},
        },
        **neighbour_reports(rows, known, warnings),
        "few_shot": few_shot_report(rows, parts, shots, few_shot_seeds, few_shot_standardisation, few_shot_c, warnings),
        "warnings": warnings,
    }
    return ProbeResult(
        report,
        classifier,
        classifier_of(best, paths["train"]),
        predictions(embeddings, parts, logits / temperature),
        splits_table(embeddings, parts),
    )


def splits_table(embeddings: Embeddings, parts: Parts) -> ImageTable:
    """The labeled rows with the part that each is in, as a table that can be saved as a fit's splits."""
    split_of = {int(row): name for name in ("train", "val", "test") for row in getattr(parts, name)}
    rows = [(embeddings.paths[row], embeddings.labels[row], name) for row, name in split_of.items()]
    return table_of("", rows, "the probe's embeddings")


class Rows(NamedTuple):
    """A table with its parts one after the other, so that each is a view and not a copy.

    Attributes:
        features: `(N, D)` float32: train, val, test; of val first the rows of classes that train has.
        target: `(N,)` int64.
        train: fitted in the sweep.
        val: select.
        fit: train and those of val that can be fitted.
        test: reported.
    """

    features: Tensor
    target: Tensor
    train: slice
    val: slice
    fit: slice
    test: slice


def arrange(embedding: Tensor, parts: Parts) -> Rows:
    """The rows of a table `(N, D)` in the order of the parts; the one copy of the features that a probe makes."""
    seen = parts.target[parts.val] < parts.known
    order = torch.cat([parts.train, parts.val[seen], parts.val[~seen], parts.test])
    start, end = len(parts.train), len(parts.train) + len(parts.val)
    return Rows(
        features=embedding[order].float(),
        target=parts.target[order],
        train=slice(0, start),
        val=slice(start, end),
        fit=slice(0, start + int(seen.sum())),
        test=slice(end, len(order)),
    )


def neighbour_reports(rows: Rows, known: int, warnings: list[str]) -> dict[str, Any]:
    """`knn`: accuracy at each k and that of the k chosen on val (of equal ones the smallest); `nearest_class_mean`."""
    unit, target = unit_rows(rows.features), rows.target
    reach = len(unit[rows.train])
    ks = sorted({min(k, reach) for k in K_NEIGHBOURS})
    if max(K_NEIGHBOURS) > reach:
        warnings.append(f"kNN: k is clamped to {reach}, the rows of train")
    on_val = knn_predictions(unit[rows.val], unit[rows.train], target[rows.train], known, ks=ks)
    on_test = knn_predictions(unit[rows.test], unit[rows.fit], target[rows.fit], known, ks=ks)
    means = nearest_class_mean(unit[rows.test], unit[rows.fit], target[rows.fit], known)
    val_top1 = {k: (on_val[k] == target[rows.val]).double().mean().item() for k in ks}
    k = max(ks, key=lambda k: (val_top1[k], -k))
    knn = {
        **top1(on_test[k], target[rows.test]),
        "k": k,
        "val_top1_by_k": {str(k): val_top1[k] for k in ks},
        "top1_by_k": {str(k): (on_test[k] == target[rows.test]).double().mean().item() for k in ks},
    }
    return {"knn": knn, "nearest_class_mean": top1(means, target[rows.test])}


def few_shot_report(
    rows: Rows,
    parts: Parts,
    shots: Sequence[int],
    seeds: Sequence[int],
    standardisation: Kind,
    c: float,
    warnings: list[str],
) -> dict[str, Any]:
    """The few-shot curve as plain types."""
    if any(n < 1 for n in shots) or not seeds:
        raise UserError(f"few-shot of {list(shots)} images a class with {len(seeds)} seeds; give at least 1 of each")
    curve = few_shot_curve(
        rows.features[rows.train],
        rows.target[rows.train],
        rows.features[rows.test],
        rows.target[rows.test],
        parts.known,
        shots=shots,
        seeds=seeds,
        standardisation=standardisation,
        c=c,
    )
    for shot in curve:
        if shot.short:
            names = [parts.class_names[number] for number in shot.short]
            warnings.append(f"{shot.n_per_class}-shot: fewer training rows, all of them used, for {listed(names)}")
    points = [
        {"n_per_class": s.n_per_class, "mean": s.mean, "std": s.std, "accuracies": list(s.accuracies)} for s in curve
    ]
    return {"seeds": list(seeds), "standardisation": standardisation, "C": c, "curve": points}


def sweep_record(swept: Sweep) -> dict[str, Any]:
    """Validation accuracy at each point; None where it was not fitted."""
    rows = [[None if value != value else value for value in row] for row in swept.accuracy.tolist()]
    return {
        "C": list(swept.c_grid),
        "val_top1": dict(zip(swept.kinds, rows, strict=True)),
        "not_converged": int((~swept.converged).sum()),
    }


def fit_warnings(swept: Sweep, final: Fitted, temperature: float, limits: dict[str, Any]) -> list[str]:
    """One line for each thing that makes the linear probe's number less than it could be."""
    lines = []
    if final.c in (swept.c_grid[0], swept.c_grid[-1]):
        end = "smallest" if final.c == swept.c_grid[0] else "largest"
        lines.append(f"the best C, {final.c:g}, is the {end} of the grid; a better one may lie beyond")
    if not final.converged:
        lines.append(
            f"the reported fit did not converge: gradient {final.gradient:.1e} after {final.iterations} "
            f"iterations, {limits['tolerance']:g} was wanted"
        )
    missed = int((~swept.converged).sum())
    if missed:
        total = swept.converged.numel()
        lines.append(f"{missed} of the sweep's {total} fits did not converge to {limits['tolerance']:g}")
    if temperature == 1.0:
        lines.append("val does not determine a temperature (all of its rows are right, or none); 1 was taken")
    return lines


def determined(temperature: float) -> float:
    """The temperature, or 1 in the place of an end of the fit's range, where the rows do not tell."""
    return temperature if 1.01 * TEMPERATURES[0] < temperature < TEMPERATURES[1] / 1.01 else 1.0


def predictions(embeddings: Embeddings, parts: Parts, logits: Tensor) -> Predictions:
    """Test predictions from calibrated logits `(T, K)`."""
    confidence, preds = logits.softmax(1).max(1)
    rows = parts.test.tolist()
    return Predictions(
        paths=tuple(embeddings.paths[row] for row in rows),
        labels=tuple(str(embeddings.labels[row]) for row in rows),
        preds=tuple(parts.class_names[number] for number in preds.tolist()),
        confidence=confidence,
    )


def compare_predictions(
    first: Predictions, second: Predictions, *, resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Compare two extractors by their probes' predictions on the same test images.

    Args:
        first: of one extractor.
        second: of the other.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: the test images or their labels differ.
    """
    for one, other in zip(
        zip(first.paths, first.labels, strict=True),
        zip(second.paths, second.labels, strict=True),
        strict=False,
    ):
        if one != other:
            raise UserError(
                f"the two probes tested different images ({one[0]}: {one[1]!r}, {other[0]}: {other[1]!r}); "
                "probe both on the same images with the same splits and seed"
            )
    if len(first.paths) != len(second.paths):
        raise UserError(
            f"the two probes tested {len(first.paths)} and {len(second.paths)} images; "
            "probe both on the same images with the same splits and seed"
        )
    return compare_paired(first.correct, second.correct, resamples=resamples, seed=seed)
