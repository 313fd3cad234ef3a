"""The linear probe: the choice of standardization and C on validation rows, and the fit with one choice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.probe.lbfgs import Fits, minimize
from transferkit.probe.objective import Objective
from transferkit.probe.standardize import KINDS, Kind, Standardization
from transferkit.runtime.progress import progress_bar

C_GRID: tuple[float, ...] = tuple(10 ** (-6 + 11 * point / 44) for point in range(45))
"""45 points from 1e-6 to 1e5, evenly spaced in log C."""
COARSE = 8
"""Stride of the first grid points that are fitted; the others start from the interpolation of their neighbors."""
COARSE_ENOUGH = 4
"""Smallest stride at which `coarse_to_fine` fits all points; at finer ones it fits only those beside the best."""
BATCH_VALUES = 2**21
"""Logits that a batch of fits may always hold, 8 MiB; or an eighth of the features' size, if that is more."""


Score = Callable[[Tensor, Tensor], Tensor]
"""Logits `(N, M, K)` of M classifiers and the target of N rows -> `(M,)` float64, higher is better."""


@dataclass(frozen=True)
class Fitted:
    """One linear classifier, and how its fit ended.

    Attributes:
        weight: `(K, D)` in the features' dtype, on the CPU, for raw features (unit rows if `standardization` is `l2`).
        bias: `(K,)`.
        standardization: `none`, `l2` or `zscore`.
        c: inverse strength of regularization.
        converged: whether the largest entry of the gradient is within the tolerance.
        gradient: that entry.
        iterations: iterations of L-BFGS.
    """

    weight: Tensor
    bias: Tensor
    standardization: Kind
    c: float
    converged: bool
    gradient: float
    iterations: int


@dataclass(frozen=True)
class Sweep:
    """Validation accuracy at each standardization and C.

    Attributes:
        kinds: the S standardizations.
        c_grid: the G values of C, ascending.
        accuracy: `(S, G)` float64; NaN where `coarse_to_fine` did not fit.
        converged: `(S, G)` bool; true where `coarse_to_fine` did not fit.
        best: the classifier of the highest accuracy; of equal ones the smallest C, then the first kind.
    """

    kinds: tuple[Kind, ...]
    c_grid: tuple[float, ...]
    accuracy: Tensor
    converged: Tensor
    best: Fitted


def logits_of(features: Tensor, weight: Tensor, bias: Tensor, kind: Kind) -> Tensor:
    """Return logits of raw features; l2 scales the rows here, the other kinds are folded into the weights.

    Args:
        features: `(N, D)`.
        weight: `(J, D)`, the rows of one or several classifiers.
        bias: `(J,)`.
        kind: standardization.

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
    standardization: Kind,
    c: float,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    objective: Callable[..., Objective] = Objective,
) -> Fitted:
    """Fit softmax regression at one C: mean cross-entropy + |W|^2 / (2 C N), the bias not penalized.

    W has a row per class, so with two classes a fit at C is that of scikit-learn's LogisticRegression, which has one
    row for both, at 2 C; from three classes on, C is the same.

    Args:
        features: `(N, D)` float32 or float64.
        target: `(N,)` int64 class numbers below `classes`.
        classes: K.
        standardization: fitted on these rows.
        c: above 0.
        tolerance: largest entry of the gradient at the end.
        max_iterations: limit on L-BFGS iterations.
        objective: what is minimized instead of softmax regression.
    """
    problem = objective(features, target, classes, Standardization.fit(features, standardization))
    strength = torch.tensor([c], dtype=torch.float64, device=features.device)
    start = torch.zeros(1, features.shape[1] + 1, classes, dtype=torch.float64, device=features.device)
    fits = minimize(problem, strength, start, tolerance=tolerance, max_iterations=max_iterations)
    return fitted(problem, fits, 0, c)


def sweep(
    features: Tensor,
    target: Tensor,
    val_features: Tensor,
    val_target: Tensor,
    classes: int,
    *,
    kinds: Sequence[Kind] = KINDS,
    c_grid: Sequence[float] = C_GRID,
    coarse_to_fine: bool = False,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    objective: Callable[..., Objective] = Objective,
    score: Score | None = None,
) -> Sweep:
    """Fit on the training rows and choose standardization and C by the accuracy on the validation rows.

    Args:
        features: `(N, D)` float32 or float64; fits run on their device, where all other tensors are, too.
        target: `(N,)` int64 class numbers below `classes`.
        val_features: `(V, D)`.
        val_target: `(V,)` int64; a number from K up counts as wrong.
        classes: K.
        kinds: standardizations.
        c_grid: ascending.
        coarse_to_fine: fit every fourth C, then only those beside the best.
        tolerance: largest entry of the gradient at the end of a fit.
        max_iterations: limit per fit.
        objective: what is minimized instead of softmax regression.
        score: what is highest at the best choice, by default the accuracy.
    """
    rows: list[Grid] = []
    total = None if coarse_to_fine else len(kinds) * len(c_grid)
    with progress_bar("linear probe", total, "fits") as advance:
        for kind in kinds:
            rows.append(
                fit_grid(
                    objective(features, target, classes, Standardization.fit(features, kind)),
                    val_features,
                    val_target,
                    c_grid,
                    coarse_to_fine,
                    tolerance=tolerance,
                    max_iterations=max_iterations,
                    score=score or accuracies,
                    advance=advance,
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
    """The part of a `Sweep` with one standardization: accuracy `(G,)`, converged `(G,)`, best classifier."""

    accuracy: Tensor
    converged: Tensor
    best: Fitted


def fit_grid(
    objective: Objective,
    val_features: Tensor,
    val_target: Tensor,
    c_grid: Sequence[float],
    coarse_to_fine: bool,
    *,
    tolerance: float,
    max_iterations: int,
    score: Score,
    advance: Callable[[int], None],
) -> Grid:
    """Fit all C of a grid, coarse points first, each finer one started from the interpolation of its neighbors.

    Points of one wave are fitted as one batch, which reads the features once for all of them. Arguments as in
    `sweep`, and `advance`, which is called with the number of fits that are done.
    """
    count, width = objective.features.shape
    room = max(1, max(BATCH_VALUES, count * width // 8) // (count * objective.classes))
    accuracy = torch.full((len(c_grid),), torch.nan, dtype=torch.float64)
    converged = torch.ones(len(c_grid), dtype=torch.bool)
    solved: dict[int, Tensor] = {}
    best: Fitted | None = None
    for wave, gap in waves(len(c_grid)):
        if coarse_to_fine and gap < COARSE_ENOUGH:
            center = int(accuracy.nan_to_num(-1).argmax())
            wave = [point for point in wave if abs(point - center) == gap]
        for first in range(0, len(wave), room):
            points = wave[first : first + room]
            start = torch.stack([interpolate(solved, point, gap, objective) for point in points])
            strengths = start.new_tensor([c_grid[point] for point in points])
            fits = minimize(
                objective, strengths, start, tolerance=tolerance, max_iterations=max_iterations, advance=advance
            )
            solved.update(zip(points, fits.parameters, strict=True))
            converged[points] = fits.converged.cpu()
            accuracy[points] = score(logits_of_fits(objective, fits, val_features), val_target).cpu()
            highest = int(accuracy.nan_to_num(-1).argmax())  # of equal ones the first: the smallest C
            if highest in points:
                best = fitted(objective, fits, points.index(highest), c_grid[highest])
    assert best is not None
    return Grid(accuracy, converged, best)


def logits_of_fits(objective: Objective, fits: Fits, features: Tensor) -> Tensor:
    """Return the logits of raw features by M fits, `(N, M, K)`."""
    standardization = objective.standardization
    weight, bias = standardization.fold(fits.parameters[:, :-1], fits.parameters[:, -1])
    rows = weight.transpose(1, 2).flatten(0, 1).to(features.dtype)  # (M K, D)
    logits = logits_of(features, rows, bias.flatten().to(features.dtype), standardization.kind)
    return logits.view(-1, *bias.shape)


def accuracies(logits: Tensor, target: Tensor) -> Tensor:
    """Return the share of rows whose highest logit is the target's, of logits `(N, M, K)`: `(M,)` float64."""
    right = logits.argmax(2) == target[:, None]  # (N, M)
    share: Tensor = right.double().mean(0)
    return share


def waves(count: int) -> Iterator[tuple[list[int], int]]:
    """Yield the points of a grid from coarse to fine, and the gap between all points so far."""
    gap = COARSE
    yield list(range(0, count, gap)), gap
    while gap > 1:
        gap //= 2
        yield list(range(gap, count, 2 * gap)), gap


def interpolate(solved: dict[int, Tensor], point: int, gap: int, objective: Objective) -> Tensor:
    """Interpolate parameters in log C: cubic if four neighbors are solved, otherwise linear, otherwise nearest."""
    near = [solved[at] for at in (point - gap, point + gap) if at in solved]
    far = [solved[at] for at in (point - 3 * gap, point + 3 * gap) if at in solved]
    if not near:
        shape = objective.features.shape[1] + 1, objective.classes
        return torch.zeros(shape, dtype=torch.float64, device=objective.features.device)
    if len(near) == len(far) == 2:
        return (9 * (near[0] + near[1]) - far[0] - far[1]) / 16
    return sum(near[1:], near[0]) / len(near)


def fitted(objective: Objective, fits: Fits, number: int, c: float) -> Fitted:
    """Return one of the fits as a classifier of raw features."""
    parameters, standardization = fits.parameters[number], objective.standardization
    weight, bias = standardization.fold(parameters[:-1], parameters[-1])
    return Fitted(
        weight=weight.T.to("cpu", objective.features.dtype).contiguous(),
        bias=bias.to("cpu", objective.features.dtype),
        standardization=standardization.kind,
        c=c,
        converged=bool(fits.converged[number]),
        gradient=float(fits.gradient[number]),
        iterations=int(fits.iterations[number]),
    )
