"""Probabilities of rows from linear probes that were not fitted on them, nor on their near-duplicates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transferkit.data.groups import deal
from transferkit.probe.linear import fit_linear, logits_of, sweep
from transferkit.runtime.progress import progress_bar

FOLDS = 5
C_TRIED = (0.1, 1.0, 10.0, 100.0)
"""From strong to weak regularization; wrong labels want more of it than right ones."""
CHOSEN_ON = 10_000
"""Rows at most on which C is chosen."""
TOLERANCE = 1e-4


def assign_folds(target: Tensor, group: Tensor, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """Deal rows into folds: a group stays together, and every class is spread as evenly as that allows.

    Args:
        target: `(N,)` int64.
        group: `(N,)` int64; rows of equal number go into one fold.
        folds: how many.
        seed: of the order in which they are dealt.

    Returns:
        `(N,)` int64 from 0.
    """
    units = [f"group {number}" for number in group.tolist()]
    return torch.tensor(deal(target.tolist(), units, [1 / folds] * folds, f"out of fold/{seed}"))


def out_of_fold(
    features: Tensor,
    target: Tensor,
    classes: int,
    group: Tensor,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    c_grid: Sequence[float] = C_TRIED,
) -> tuple[Tensor, float]:
    """Return class probabilities of every row by a probe fitted on the other folds, and the C that was chosen.

    C is chosen once, by accuracy on the first fold, on 10,000 rows at most.

    Args:
        features: `(N, D)` float32, of length 1 as the probe takes them.
        target: `(N,)` int64.
        classes: K.
        group: `(N,)` int64; near-duplicates have equal numbers.
        folds: how many.
        seed: of the folds.
        c_grid: ascending.

    Returns:
        `(N, K)` float32, and C.
    """
    fold = assign_folds(target, group, folds, seed)
    c = chosen_c(features, target, classes, fold, c_grid, seed)
    probability = torch.zeros(len(target), classes)
    how: dict[str, Any] = {"standardization": "none", "c": c, "tolerance": TOLERANCE}
    with progress_bar("out-of-fold probabilities", folds, "folds") as advance:
        for number in range(folds):
            inside = (fold == number).nonzero().flatten()
            rest = (fold != number).nonzero().flatten()
            if len(inside) and len(rest):
                fitted = fit_linear(features[rest], target[rest], classes, **how)
                logits = logits_of(features[inside], fitted.weight, fitted.bias, "none")
                probability[inside] = logits.softmax(1)
            advance(1)
    return probability, c


def chosen_c(features: Tensor, target: Tensor, classes: int, fold: Tensor, c_grid: Sequence[float], seed: int) -> float:
    """Return the C of highest accuracy on the first fold; arguments as :func:`out_of_fold`."""
    drawn = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))[:CHOSEN_ON]
    held = drawn[fold[drawn] == 0]
    rest = drawn[fold[drawn] != 0]
    if not len(held) or not len(rest):
        return float(c_grid[-1])
    swept = sweep(
        features[rest], target[rest], features[held], target[held], classes,
        kinds=("none",), c_grid=c_grid, tolerance=TOLERANCE,
    )  # fmt: skip
    return swept.best.c
