"""The whole probe: from a table of embeddings to a report, a classifier and its test predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, table_of
from transferkit.data.seen import remember_paths, seen_by_backbone
from transferkit.data.splits import HELD_OUT
from transferkit.errors import UserError, listed
from transferkit.probe.classifier import LinearClassifier
from transferkit.probe.fewshot import SEEDS, SHOTS, few_shot_curve
from transferkit.probe.knn import K_NEIGHBORS, knn_predictions, nearest_class_mean
from transferkit.probe.linear import Fitted, Sweep, fit_linear, logits_of, sweep
from transferkit.probe.own_paths import with_own_paths
from transferkit.probe.row_splits import Members, RowSplits, split_rows
from transferkit.probe.scores import scores, top1
from transferkit.probe.standardize import Kind
from transferkit.reports.predictions import Columns
from transferkit.runtime.versions import versions
from transferkit.similarity import unit_rows
from transferkit.similarity.paired import PairedComparison, compare_paired
from transferkit.similarity.temperature import TEMPERATURES, fit_temperature

PROTOCOL = 1
"""Increased when the same embeddings would give other numbers."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier on the test images, for a paired comparison.

    Attributes:
        paths: paths of the test images, sorted.
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
        """Whether each prediction is right, `(T,)` bool."""
        return torch.tensor([label == pred for label, pred in zip(self.labels, self.preds, strict=True)])


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe.

    Attributes:
        report: plain types, to be written as JSON.
        classifier: the reported one, fitted on train and val.
        start: fitted on train only, to start fine-tuning from, so that val remains to select on.
        predictions: those of ``classifier`` on test.
        splits: the images that were used, each with its split.
        columns: of the table of test predictions, if it is not that of classes.
    """

    report: dict[str, Any]
    classifier: LinearClassifier
    start: LinearClassifier
    predictions: Predictions
    splits: ImageTable
    columns: Columns | None = None

    def warn_of_seen(self, remembered: str) -> None:
        """Add a warning to the report if the backbone was trained on images of val or test.

        Args:
            remembered: what :func:`~transferkit.data.seen.backbone_seen` returned.
        """
        pairs = list(zip(self.splits.paths, self.splits.splits, strict=True))
        held_out = {name: [path for path, split in pairs if split == name] for name in ("val", "test")}
        self.report["warnings"] += seen_by_backbone(held_out, remembered)


def probe_embeddings(
    embeddings: Embeddings,
    *,
    coarse_to_fine: bool = False,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = HELD_OUT,
    shots: Sequence[int] = SHOTS,
    few_shot_seeds: Sequence[int] = SEEDS,
    few_shot_standardization: Kind = "l2",
    few_shot_c: float = 100.0,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Probe embeddings: select on the validation rows, report on the test rows.

    The linear probe sweeps standardization and C on train, chooses on val, fits the choice on train + val and
    reports on test. Its temperature is fitted on the val logits of the classifier fitted on train only. kNN
    chooses k on val, too, with train + val as references for test. Few-shot fits training rows only.

    Args:
        embeddings: table with labels; its splits are kept, missing ones are drawn (see `split_rows`).
        coarse_to_fine: fit every fourth C, then only those beside the best.
        seed: seed of the drawn splits.
        val_fraction: share of train, if val is drawn.
        test_fraction: share of all rows, if test is drawn.
        shots: images per class of the few-shot curve.
        few_shot_seeds: seeds of its draws.
        few_shot_standardization: `none`, `l2` or `zscore`; fixed, since few-shot has no rows to choose it on.
        few_shot_c: inverse strength of regularization of few-shot, fixed for the same reason.
        tolerance: largest entry of the gradient at the end of a fit.
        max_iterations: limit per fit.
        device: where the sweep and the reported fit run; another one gives other last digits.

    Raises:
        UserError: the rows cannot be split (see `split_rows`), or fewer than 1 of `shots` or `few_shot_seeds`.
    """
    embeddings = with_own_paths(embeddings)
    splits = split_rows(embeddings, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    known, rows = splits.known, arrange(embeddings.embedding, splits)
    table, target = rows.features, rows.target
    limits: dict[str, Any] = {"tolerance": tolerance, "max_iterations": max_iterations}
    train, fit, test = table[rows.train], table[rows.fit], table[rows.test]
    there, classes = table[: rows.val.stop].to(device), target[: rows.val.stop].to(device)
    parts = there[rows.train], classes[rows.train], there[rows.val], classes[rows.val]
    swept = sweep(*parts, known, coarse_to_fine=coarse_to_fine, **limits)
    best = swept.best
    seen = slice(len(train), len(fit))
    on_val = logits_of(table[seen], best.weight, best.bias, best.standardization)
    temperature = determined(fit_temperature(on_val, target[seen]))
    chosen: dict[str, Any] = {"standardization": best.standardization, "c": best.c}
    final = fit_linear(there[rows.fit], classes[rows.fit], known, **chosen, **limits)
    paths = {name: [embeddings.paths[row] for row in getattr(splits, name)] for name in ("train", "val", "test")}

    def classifier_of(fit: Fitted, fitted: list[str]) -> LinearClassifier:
        names = splits.class_names[:known]
        facts = (fit.standardization, fit.c, temperature, embeddings.metadata, remember_paths(fitted))
        return LinearClassifier(fit.weight, fit.bias, names, *facts)

    classifier = classifier_of(final, paths["train"] + paths["val"])
    logits = classifier.logits(test)
    warnings = splits.warnings + fit_warnings(swept, final, temperature, limits)
    options: dict[str, Any] = {
        "fast": coarse_to_fine,
        "seed": seed,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
    }
    options["few_shot_draws"] = len(few_shot_seeds)
    report = {
        "protocol": PROTOCOL,
        "options": options,
        "embeddings": dict(embeddings.metadata),
        "versions": versions(),
        "splits": {**splits.origin, "train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        "class_names": list(splits.class_names[:known]),
        "linear": {
            **scores(logits, target[rows.test], splits.class_names, temperature),
            "standardisation": final.standardization,
            "C": final.c,
            "temperature": temperature,
            "val_top1": swept.accuracy.nan_to_num(-1).max().item(),
            "fitted_rows": len(fit),
            "converged": final.converged,
            "gradient": final.gradient,
            "iterations": final.iterations,
            "sweep": {**sweep_record(swept), "fast": coarse_to_fine, **limits},
        },
        **neighbor_reports(rows, known, warnings),
        "few_shot": few_shot_report(
            rows, splits, shots, few_shot_seeds, few_shot_standardization, few_shot_c, warnings
        ),
        "warnings": warnings,
    }
    return ProbeResult(
        report,
        classifier,
        classifier_of(best, paths["train"]),
        predictions(embeddings, splits, logits / temperature),
        splits_table(embeddings, splits),
    )


def splits_table(embeddings: Embeddings, splits: RowSplits | Members) -> ImageTable:
    """Return the labeled rows, each with its split, as a table that can be saved as the splits of a fit."""
    split_of = {int(row): name for name in ("train", "val", "test") for row in getattr(splits, name)}
    rows = [(embeddings.paths[row], embeddings.labels[row], name) for row, name in split_of.items()]
    return table_of("", rows, "the probe's embeddings")


class Rows(NamedTuple):
    """A table with its splits one after the other, so that each is a view and not a copy.

    Attributes:
        features: `(N, D)` float32: train, val, test; in val first the rows of classes that train has.
        target: `(N,)` int64.
        train: rows fitted in the sweep.
        val: rows to select on.
        fit: train and those rows of val that can be fitted.
        test: rows to report on.
    """

    features: Tensor
    target: Tensor
    train: slice
    val: slice
    fit: slice
    test: slice


def arrange(embedding: Tensor, splits: RowSplits) -> Rows:
    """Order the rows of a table `(N, D)` by their splits; the only copy of the features that a probe makes."""
    seen = splits.target[splits.val] < splits.known
    order = torch.cat([splits.train, splits.val[seen], splits.val[~seen], splits.test])
    start, end = len(splits.train), len(splits.train) + len(splits.val)
    return Rows(
        features=embedding[order].float(),
        target=splits.target[order],
        train=slice(0, start),
        val=slice(start, end),
        fit=slice(0, start + int(seen.sum())),
        test=slice(end, len(order)),
    )


def neighbor_reports(rows: Rows, known: int, warnings: list[str]) -> dict[str, Any]:
    """Report `nearest_class_mean`, and `knn` at each k and at the k chosen on val (of equal ones the smallest)."""
    unit, target = unit_rows(rows.features), rows.target
    reach = len(unit[rows.train])
    ks = sorted({min(k, reach) for k in K_NEIGHBORS})
    if max(K_NEIGHBORS) > reach:
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
    splits: RowSplits,
    shots: Sequence[int],
    seeds: Sequence[int],
    standardization: Kind,
    c: float,
    warnings: list[str],
) -> dict[str, Any]:
    """Report the few-shot curve as plain types.

    Raises:
        UserError: fewer than 1 image per class, or no seed.
    """
    if any(n < 1 for n in shots) or not seeds:
        raise UserError(f"few-shot with {list(shots)} images per class and {len(seeds)} seeds; give at least 1 of each")
    curve = few_shot_curve(
        rows.features[rows.train],
        rows.target[rows.train],
        rows.features[rows.test],
        rows.target[rows.test],
        splits.known,
        shots=shots,
        seeds=seeds,
        standardization=standardization,
        c=c,
    )
    for shot in curve:
        if shot.short:
            names = [splits.class_names[number] for number in shot.short]
            warnings.append(f"{shot.n_per_class}-shot: fewer training rows, all of them used, for {listed(names)}")
    points = [
        {name: getattr(shot, name) for name in ("n_per_class", "mean", "std", "standard_error")}
        | {"accuracies": list(shot.accuracies)}
        for shot in curve
    ]
    return {"seeds": list(seeds), "standardisation": standardization, "C": c, "curve": points}


def sweep_record(swept: Sweep, measure: str = "val_top1") -> dict[str, Any]:
    """Report the validation accuracy, or another measure, at each point; None where it was not fitted."""
    rows = [[None if value != value else value for value in row] for row in swept.accuracy.tolist()]
    return {
        "C": list(swept.c_grid),
        measure: dict(zip(swept.kinds, rows, strict=True)),
        "not_converged": int((~swept.converged).sum()),
    }


def edge_warnings(swept: Sweep) -> list[str]:
    """Return a line if the best C is at an end of the grid."""
    c = swept.best.c
    if c not in (swept.c_grid[0], swept.c_grid[-1]):
        return []
    end = "smallest" if c == swept.c_grid[0] else "largest"
    return [f"the best C, {c:g}, is the {end} of the grid; a better one may lie beyond"]


def fit_warnings(swept: Sweep, final: Fitted, temperature: float, limits: dict[str, Any]) -> list[str]:
    """List what may make the linear probe's accuracy lower than it could be, one line each."""
    lines = edge_warnings(swept)
    if not final.converged:
        lines.append(
            f"the reported fit did not converge: gradient {final.gradient:.1e} after {final.iterations} "
            f"iterations, tolerance {limits['tolerance']:g}"
        )
    missed = int((~swept.converged).sum())
    if missed:
        total = swept.converged.numel()
        lines.append(f"{missed} of the sweep's {total} fits did not converge to {limits['tolerance']:g}")
    if temperature == 1.0:
        lines.append("val does not determine a temperature (all of its rows are right, or all wrong); 1 was used")
    return lines


def determined(temperature: float) -> float:
    """Return the temperature, or 1 if it is at an end of its range, where the rows do not determine it."""
    return temperature if 1.01 * TEMPERATURES[0] < temperature < TEMPERATURES[1] / 1.01 else 1.0


def predictions(embeddings: Embeddings, splits: RowSplits, logits: Tensor) -> Predictions:
    """Return the test predictions from calibrated logits `(T, K)`."""
    confidence, preds = logits.softmax(1).max(1)
    rows = splits.test.tolist()
    return Predictions(
        paths=tuple(embeddings.paths[row] for row in rows),
        labels=tuple(str(embeddings.labels[row]) for row in rows),
        preds=tuple(splits.class_names[number] for number in preds.tolist()),
        confidence=confidence,
    )


def compare_predictions(
    first: Predictions, second: Predictions, *, resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Compare two extractors by their probes' predictions on the same test images.

    Args:
        first: predictions with one extractor.
        second: predictions with the other.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        UserError: see :func:`check_same_images`.
    """
    check_same_images(first, second)
    return compare_paired(first.correct, second.correct, resamples=resamples, seed=seed)


def check_same_images(first: Predictions, second: Predictions) -> None:
    """Validate that two probes were tested on the same images.

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
