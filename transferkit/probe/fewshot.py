"""Few-shot curves: how far a handful of training images a class goes. Only training rows are fitted."""

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
        n_per_class: images asked for.
        accuracies: on the test rows, one a seed, in [0, 1].
        short: classes that have fewer training rows than asked for, all of which were used.
    """

    n_per_class: int
    accuracies: tuple[float, ...]
    short: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds (0 with one)."""
        spread = torch.tensor(self.accuracies, dtype=torch.float64)
        return spread.std().item() if len(spread) > 1 else 0.0


def few_shot_curve(
    features: Tensor,
    target: Tensor,
    test_features: Tensor,
    test_target: Tensor,
    classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    standardisation: Kind,
    c: float,
) -> list[Shot]:
    """Fit n images a class, drawn anew by each seed, and score the test rows.

    Standardisation and C are fixed beforehand: to choose them on validation rows would use more labels than
    n a class. What a seed draws for a smaller n is part of what it draws for a larger one.

    Args:
        features: `(N, D)`, training rows only.
        target: `(N,)` int64 class numbers below `classes`, each present.
        test_features: `(T, D)`; scored, never fitted.
        test_target: `(T,)` int64; a number that is no class counts as wrong.
        classes: K.
        shots: the n.
        seeds: of the draws.
        standardisation: of the rows drawn.
        c: inverse strength of regularisation.

    Returns:
        One point for each n.
    """
    rows = torch.bincount(target, minlength=classes)
    orders = [draw_order(target, classes, seed) for seed in seeds]
    curve = []
    for n in shots:
        accuracies = []
        for order in orders:
            drawn = torch.cat([members[:n] for members in order])
            model = fit_linear(features[drawn], target[drawn], classes, standardisation=standardisation, c=c)
            preds = logits_of(test_features, model.weight, model.bias, standardisation).argmax(1)
            accuracies.append((preds == test_target).double().mean().item())
        curve.append(Shot(n, tuple(accuracies), tuple((rows < n).nonzero().flatten().tolist())))
    return curve


def draw_order(target: Tensor, classes: int, seed: int) -> list[Tensor]:
    """The rows of each class in random order, one `(n_k,)` int64 a class."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.split(target.argsort(stable=True), target.bincount(minlength=classes).tolist())
    return [rows[torch.randperm(len(rows), generator=generator)] for rows in members]
