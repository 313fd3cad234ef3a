"""The probe's sweep over C and standardization against scikit-learn; see bench_probe.py, which does the work."""

import argparse
from collections.abc import Iterator

from tests.bench.bench_probe import data, sklearn_sweep
from tests.bench.timing import Row, Turns, in_turns, settled
from transferkit.probe.linear import logits_of, sweep
from transferkit.similarity.intervals import wilson

TOLERANCE = 1e-4


def rows(full: bool) -> Iterator[Row]:
    """Fit every C under every standardization on both sides; the accuracies of both choices must agree."""
    rows, width = (20_000, 512) if full else (500, 128)
    options = argparse.Namespace(rows=rows, width=width, classes=10, held_out=1_000, gap=0.45)
    (train, val, test), (target, val_target, test_target) = parts, targets = data(options, seed=0)
    theirs_accuracy: list[float] = []
    best = sweep(train, target, val, val_target, 10, tolerance=TOLERANCE).best
    preds = logits_of(test, best.weight, best.bias, best.standardization).argmax(1)
    right = int((preds == test_target).sum())

    def turns() -> Turns:
        return in_turns(
            lambda: sweep(train, target, val, val_target, 10, tolerance=TOLERANCE),
            lambda: theirs_accuracy.append(sklearn_sweep(parts, targets, TOLERANCE)[1]),
        )

    ours, theirs = turns()
    low, high = wilson(right, len(test))
    conditions = {f"theirs {theirs_accuracy[0]:.3f} in ours' {low:.3f}–{high:.3f}": low <= theirs_accuracy[0] <= high}
    what = f"probe sweep, {rows:,} × {width}, 45 C × 3"
    yield settled(Row(what, "scikit-learn, warm-started", "faster", 5, ours, theirs, conditions), turns)
