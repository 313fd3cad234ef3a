"""The linear probe: standardisation and C chosen on validation rows, and the fit at one of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.probe.lbfgs import Fits, minimise
from transferkit.probe.objective import Objective
from transferkit.probe.standardize import KINDS, Kind, Standardisation

C_GRID: tuple[float, ...] = tuple(10 ** (-6 + 11 * place / 44) for place in range(45))
"""45 points from 1e-6 to 1e5, evenly spaced in log C."""
COARSE = 8
"""Stride of the first points of the grid that are fitted; the others start from between their neighbours."""
FAST = 4
"""Stride up to which `fast` fits all points; finer ones only beside the best so far."""
BATCH_VALUES = 2**21
"""Logits that a batch of fits may always hold, 8 MiB; above that an eighth of the features' size."""


@dataclass(frozen=True)
class Fitted:
    """One linear classifier, and how its fit ended.

    Attributes:
        weight: `(K, D)` in the features' dtype, for raw features (for unit rows where standardised by l2).
        bias: `(K,)`.
        standardisation: kind.
        c: inverse strength of regularisation.
        converged: whether the largest entry of the gradient is within the tolerance.
        gradient: that entry.
        iterations: of L-BFGS.
    """

    weight: Tensor
    bias: Tensor
    standardisation: Kind
    c: float
    converged: bool
    gradient: float
    iterations: int


@dataclass(frozen=True)
class Sweep:
    """Validation accuracy at each standardisation and C.

    Attributes:
        kinds: the S standardisations.
        c_grid: the G values of C, ascending.
        accuracy: `(S, G)` float64; NaN where `fast` did not fit.
        converged: `(S, G)` bool; true where `fast` did not fit.
        best: the classifier of the highest accuracy; of equal ones the smallest C, then the first kind.
    """

    kinds: tuple[Kind, ...]
    c_grid: tuple[float, ...]
    accuracy: Tensor
    converged: Tensor
    best: Fitted


def logits_of(features: Tensor, weight: Tensor, bias: Tensor, kind: Kind) -> Tensor:
    """Logits of raw features `(N, D)`; l2 scales the rows here, the other kinds are folded into the weights.

    Args:
        features: `(N, D)`.
        weight: `(J, D)`, the rows of one classifier or of several.
        bias: `(J,)`.
        kind: standardisation.

    Returns:
        `(N, J)`.
    """
    logits = features @ weight.T
    if kind == "l2":
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        logits /= length.masked_fill_(length == 0, 1)
    logits += bias
    return logits


def fit_linear(
    features: Tensor,
    target: Tensor,
    classes: int,
    *,
    standardisation: Kind,
    c: float,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> Fitted:
    """Fit softmax regression at one C: mean cross-entropy + |W|^2 / (2 C N), the bias not penalised.

    Args:
        features: `(N, D)` float32 or float64.
        target: `(N,)` int64 class numbers below `classes`.
        classes: K.
        standardisation: fitted on these rows.
        c: above 0.
        tolerance: largest entry of the gradient at the end.
        max_iterations: of L-BFGS.
    """
    objective = Objective(features, target, classes, Standardisation.fit(features, standardisation))
    strength = torch.tensor([c], dtype=torch.float64)
    start = torch.zeros(1, features.shape[1] + 1, classes, dtype=torch.float64)
    fits = minimise(objective, strength, start, tolerance=tolerance, max_iterations=max_iterations)
    return fitted(objective, fits, 0, c)


def sweep(
    features: Tensor,
    target: Tensor,
    val_features: Tensor,
    val_target: Tensor,
    classes: int,
    *,
    kinds: Sequence[Kind] = KINDS,
    c_grid: Sequence[float] = C_GRID,
    fast: bool = False,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> Sweep:
    """Fit on one part and choose standardisation and C by the accuracy on another.

    Args:
        features: `(N, D)` float32 or float64.
        target: `(N,)` int64 class numbers below `classes`.
        val_features: `(V, D)`.
        val_target: `(V,)` int64; a number that is no class counts as wrong.
        classes: K.
        kinds: standardisations.
        c_grid: ascending.
        fast: fit every fourth C, then only beside the best.
        tolerance: largest entry of the gradient at the end of a fit.
        max_iterations: of each fit.
    """
    rows: list[Grid] = []
    for kind in kinds:
        objective = Objective(features, target, classes, Standardisation.fit(features, kind))
        rows.append(
            fit_grid(
                objective,
                val_features,
                val_target,
                c_grid,
                fast,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
        )
    return Sweep(
        kinds=tuple(kinds),
        c_grid=tuple(c_grid),
        accuracy=torch.stack([row.accuracy for row in rows]),
        converged=torch.stack([row.converged for row in rows]),
        best=max(rows, key=lambda row: (row.accuracy.nan_to_num(-1).max().item(), -row.best.c)).best,
    )


@dataclass(frozen=True)
class Grid:
    """One standardisation's part of a `Sweep`: accuracy `(G,)`, converged `(G,)`, best classifier."""

    accuracy: Tensor
    converged: Tensor
    best: Fitted


def fit_grid(
    objective: Objective,
    val_features: Tensor,
    val_target: Tensor,
    c_grid: Sequence[float],
    fast: bool,
    *,
    tolerance: float,
    max_iterations: int,
) -> Grid:
    """Fit all C of a grid, coarse points first, each finer one started from between its neighbours.

    Points of one wave are fitted as one batch, which reads the features once for all of them. Arguments as
    `sweep`.
    """
    count, width = objective.features.shape
    room = max(1, max(BATCH_VALUES, count * width // 8) // (count * objective.classes))
    accuracy = torch.full((len(c_grid),), torch.nan, dtype=torch.float64)
    converged = torch.ones(len(c_grid), dtype=torch.bool)
    solved: dict[int, Tensor] = {}
    best: Fitted | None = None
    for wave, gap in waves(len(c_grid)):
        if fast and gap < FAST:
            centre = int(accuracy.nan_to_num(-1).argmax())
            wave = [place for place in wave if abs(place - centre) == gap]
        for first in range(0, len(wave), room):
            places = wave[first : first + room]
            start = torch.stack([between(solved, place, gap, objective) for place in places])
            strengths = torch.tensor([c_grid[place] for place in places], dtype=torch.float64)
            fits = minimise(objective, strengths, start, tolerance=tolerance, max_iterations=max_iterations)
            solved.update(zip(places, fits.parameters, strict=True))
            converged[places] = fits.converged
            accuracy[places] = accuracies(objective, fits, val_features, val_target)
            highest = int(accuracy.nan_to_num(-1).argmax())  # of equal ones the first: the smallest C
            if highest in places:
                best = fitted(objective, fits, places.index(highest), c_grid[highest])
    assert best is not None
    return Grid(accuracy, converged, best)


def accuracies(objective: Objective, fits: Fits, features: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose highest logit is the target's, for each of M fits, `(M,)` float64."""
    standardisation = objective.standardisation
    weight, bias = standardisation.fold(fits.parameters[:, :-1], fits.parameters[:, -1])
    rows = weight.transpose(1, 2).flatten(0, 1).to(features.dtype)  # (M K, D)
    logits = logits_of(features, rows, bias.flatten().to(features.dtype), standardisation.kind)
    right = logits.view(-1, *bias.shape).argmax(2) == target[:, None]  # (N, M)
    share: Tensor = right.double().mean(0)
    return share


def waves(count: int) -> Iterator[tuple[list[int], int]]:
    """Places of a grid from coarse to fine, and the gap between all places so far."""
    gap = COARSE
    yield list(range(0, count, gap)), gap
    while gap > 1:
        gap //= 2
        yield list(range(gap, count, 2 * gap)), gap


def between(solved: dict[int, Tensor], place: int, gap: int, objective: Objective) -> Tensor:
    """Interpolate parameters in log C: cubic where four neighbours are solved, else linear, else nearest."""
    near = [solved[at] for at in (place - gap, place + gap) if at in solved]
    far = [solved[at] for at in (place - 3 * gap, place + 3 * gap) if at in solved]
    if not near:
        return torch.zeros(objective.features.shape[1] + 1, objective.classes, dtype=torch.float64)
    if len(near) == len(far) == 2:
        return (9 * (near[0] + near[1]) - far[0] - far[1]) / 16
    return sum(near[1:], near[0]) / len(near)


def fitted(objective: Objective, fits: Fits, number: int, c: float) -> Fitted:
    """One of the fits as a classifier of raw features."""
    parameters, standardisation = fits.parameters[number], objective.standardisation
    weight, bias = standardisation.fold(parameters[:-1], parameters[-1])
    return Fitted(
        weight=weight.T.to(objective.features.dtype).contiguous(),
        bias=bias.to(objective.features.dtype),
        standardisation=standardisation.kind,
        c=c,
        converged=bool(fits.converged[number]),
        gradient=float(fits.gradient[number]),
        iterations=int(fits.iterations[number]),
    )
