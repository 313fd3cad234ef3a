"""Few-shot curves: accuracy of classifiers fitted on a few training images per class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.probe.linear import fit_linear, logits_of
from transferkit.probe.standardize import Kind

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Shot:
    """One point of the curve.

    Attributes:
        n_per_class: training images per class.
        accuracies: on the test rows, one per seed, in [0, 1].
        short: classes with fewer training rows than that; all of their rows were used.
    """

    n_per_class: int
    accuracies: tuple[float, ...]
    short: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds (0 for a single one)."""
        spread = torch.tensor(self.accuracies, dtype=torch.float64)
        return spread.std().item() if len(spread) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the seeds, of the draws alone."""
        return self.std / math.sqrt(len(self.accuracies))


def few_shot_curve(
    features: Tensor,
    target: Tensor,
    test_features: Tensor,
    test_target: Tensor,
    classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    standardization: Kind,
    c: float,
) -> list[Shot]:
    """Fit n training rows per class, drawn once per seed, and score the test rows.

    Standardization and C are fixed beforehand, since choosing them on validation rows would use more than n labels
    per class. The rows that a seed draws for a smaller n are among those it draws for a larger one.

    Args:
        features: `(N, D)`, training rows only.
        target: `(N,)` int64 class numbers below `classes`, each present.
        test_features: `(T, D)`; scored, never fitted.
        test_target: `(T,)` int64; a number from K up counts as wrong.
        classes: K.
        shots: values of n.
        seeds: seeds of the draws.
        standardization: fitted on the drawn rows.
        c: inverse strength of regularization.

    Returns:
        One point per n.
    """
    rows = torch.bincount(target, minlength=classes)
    orders = [draw_order(target, classes, seed) for seed in seeds]
    curve = []
    for n in shots:
        accuracies = []
        for order in orders:
            drawn = torch.cat([members[:n] for members in order])
            model = fit_linear(features[drawn], target[drawn], classes, standardization=standardization, c=c)
            preds = logits_of(test_features, model.weight, model.bias, standardization).argmax(1)
            accuracies.append((preds == test_target).double().mean().item())
        curve.append(Shot(n, tuple(accuracies), tuple((rows < n).nonzero().flatten().tolist())))
    return curve


def draw_order(target: Tensor, classes: int, seed: int) -> list[Tensor]:
    """Return the rows of each class in random order, one `(n_k,)` int64 tensor per class."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.split(target.argsort(stable=True), target.bincount(minlength=classes).tolist())
    return [rows[torch.randperm(len(rows), generator=generator)] for rows in members]
