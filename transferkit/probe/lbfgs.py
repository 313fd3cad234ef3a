"""Full-batch L-BFGS with a strong Wolfe line search, for several classifiers in one batch."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.probe.objective import Objective, Value

MEMORY = 10
TRIALS = 20
PATIENCE = 50
"""Iterations in which the loss must fall by more than the rounding error of the features' precision."""


@dataclass(frozen=True)
class Fits:
    """M fitted classifiers.

    Attributes:
        parameters: `(M, D + 1, K)` float64.
        gradient: `(M,)` float64, largest absolute entry of the gradient.
        iterations: `(M,)` int64.
        converged: `(M,)` bool, whether that entry is at most the tolerance.
    """

    parameters: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor


class Pair(NamedTuple):
    """A step, the change of the gradient along it, `(M, D + 1, K)` each, and their inner product `(M,)`."""

    step: Tensor
    change: Tensor
    product: Tensor


@dataclass
class Batch:
    """The classifiers that are still being fitted: their numbers, and everything with one entry per classifier."""

    number: Tensor  # (M,)
    penalty: Tensor  # (M,)
    parameters: Tensor  # (M, D + 1, K)
    logits: Tensor  # (N, M, K)
    value: Value
    history: deque[Pair]
    milestone: Tensor  # (M,) loss when it was last checked


def minimize(
    objective: Objective,
    c: Tensor,
    start: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    advance: Callable[[int], None] = lambda fits: None,
) -> Fits:
    """Minimize the objective for each C; a classifier leaves the batch when it is done.

    L-BFGS (Nocedal and Wright 2006, algorithm 7.5) whose initial inverse Hessian is the objective's
    preconditioner, updated in each iteration. An iteration takes two products with the features: one for the
    logits of the direction, shared by the whole line search, and one for the gradient.

    Args:
        objective: of N rows, D features, K classes.
        c: `(M,)` float64, inverse strengths of regularization.
        start: `(M, D + 1, K)` float64.
        tolerance: a fit has converged when no entry of its gradient is larger, as in scikit-learn's lbfgs.
        max_iterations: limit per classifier.
        advance: called with the number of classifiers that are done, whenever some are.

    Returns:
        The fits. A fit that cannot be improved further in the features' precision has not converged.
    """
    batch = begin(objective, 1 / (c.double() * len(objective.features)), start)
    parameters = start.clone()
    gradient = torch.zeros(len(c), dtype=torch.float64, device=start.device)
    iterations = torch.zeros(len(c), dtype=torch.long, device=start.device)
    stuck = torch.zeros(len(c), dtype=torch.bool, device=start.device)
    for iteration in range(max_iterations + 1):
        largest, loss = batch.value.gradient.abs().amax((1, 2)), batch.value.loss
        if iteration % PATIENCE == 0:
            stuck |= batch.milestone - loss <= torch.finfo(batch.logits.dtype).eps * loss.abs()
            batch.milestone = loss
        done = (largest <= tolerance) | stuck | (iteration == max_iterations)
        if done.any():
            leaving = batch.number[done]
            parameters[leaving], gradient[leaving] = batch.parameters[done], largest[done]
            iterations[leaving] = iteration
            advance(len(leaving))
            if done.all():
                break
            batch = keep(batch, (~done).nonzero().flatten())
        stuck = iterate(objective, batch)
    return Fits(parameters, gradient, iterations, gradient <= tolerance)


def begin(objective: Objective, penalty: Tensor, start: Tensor) -> Batch:
    """Return the batch of all classifiers at their start."""
    logits = objective.logits(start)
    value = objective(start, penalty, logits, logits, torch.zeros_like(penalty))
    return Batch(
        torch.arange(len(start), device=start.device),
        penalty,
        start,
        logits,
        value,
        deque(maxlen=MEMORY),
        torch.full_like(penalty, torch.inf),
    )


def keep(batch: Batch, rows: Tensor) -> Batch:
    """Return the batch with only the given classifiers."""
    value = batch.value
    return replace(
        batch,
        number=batch.number[rows],
        penalty=batch.penalty[rows],
        parameters=batch.parameters[rows],
        logits=batch.logits[:, rows],
        value=Value(value.loss[rows], value.gradient[rows], value.curvature[rows]),
        milestone=batch.milestone[rows],
        history=deque((Pair(*(part[rows] for part in pair)) for pair in batch.history), maxlen=MEMORY),
    )


def iterate(objective: Objective, batch: Batch) -> Tensor:
    """Run one iteration in place; return `(M,)` bool, true for classifiers that found no acceptable step."""
    direction = -two_loop(objective, batch)
    slope = objective.logits(direction)
    step, value, found = line_search(objective, batch, direction, slope)
    moved = step[:, None, None] * direction
    change = value.gradient - batch.value.gradient
    batch.history.append(Pair(moved, change, bend(moved, change)))
    batch.parameters = batch.parameters + moved
    batch.logits.addcmul_(slope, step.to(slope.dtype)[:, None])
    batch.value = value
    return ~found


def two_loop(objective: Objective, batch: Batch) -> Tensor:
    """Return the estimated inverse Hessian times the gradient, `(M, D + 1, K)`."""
    result, coefficients = batch.value.gradient.clone(), []
    for step, change, product in reversed(batch.history):
        coefficient = dot(step, result) / product
        coefficients.append(coefficient)
        result -= coefficient[:, None, None] * change
    result = objective.precondition(result, batch.value.curvature, batch.penalty)
    for (step, change, product), coefficient in zip(batch.history, reversed(coefficients), strict=True):
        coefficient = coefficient - dot(change, result) / product
        result += coefficient[:, None, None] * step
    return result


def line_search(objective: Objective, batch: Batch, direction: Tensor, slope: Tensor) -> tuple[Tensor, Value, Tensor]:
    """Find step lengths that satisfy the strong Wolfe conditions (c1 = 1e-4, c2 = 0.9), first trial 1.

    The objective is convex along the direction, so the slope grows with the step, and a secant on the slope,
    kept inside its bracket, finds the minimum. All classifiers are tried together, then those that failed.

    Returns:
        Steps `(M,)`, 0 if none was found; the values there; and `(M,)` bool, whether one was found.
    """
    first, at_start = batch.value.loss, dot(direction, batch.value.gradient)
    step, low = torch.ones_like(first), torch.zeros_like(first)
    high, low_slope = torch.full_like(first, torch.inf), at_start.clone()
    value = Value(*(torch.empty_like(part) for part in vars(batch.value).values()))
    noise = torch.finfo(slope.dtype).eps * first.abs()
    trying = torch.arange(len(first), device=first.device)
    for _ in range(TRIALS):
        whole = len(trying) == len(first)
        length, along = step[trying], direction[trying]
        trial = objective(
            batch.parameters[trying] + length[:, None, None] * along,
            batch.penalty[trying],
            batch.logits if whole else batch.logits[:, trying],
            slope if whole else slope[:, trying],
            length,
        )
        value.loss[trying], value.gradient[trying], value.curvature[trying] = vars(trial).values()
        reached, initial = dot(along, trial.gradient), at_start[trying]
        lower = trial.loss <= first[trying] + 1e-4 * length * initial + noise[trying]
        failed = ~lower | (reached.abs() > 0.9 * initial.abs())
        short = failed & lower & (reached < 0)  # the minimum lies beyond
        far = failed & ~short
        high[trying[far]] = length[far]
        # The zero of the slope's secant, taken before the bracket moves.
        gap = length - low[trying]
        secant = low[trying] + gap * low_slope[trying] / (low_slope[trying] - reached)
        low[trying[short]], low_slope[trying[short]] = length[short], reached[short]
        below, above = low[trying], high[trying]
        margin = 0.1 * (above - below)
        inside = secant.nan_to_num().clamp(below + margin, above - margin)
        onward = torch.where(secant > length, secant, torch.inf).clamp_max(10 * length)
        step[trying[failed]] = torch.where(above.isinf(), onward, inside)[failed]
        trying = trying[failed]
        if len(trying) == 0:
            break
    found = torch.ones_like(first, dtype=torch.bool)
    found[trying], step[trying] = False, 0
    for part, before in zip(vars(value).values(), vars(batch.value).values(), strict=True):
        part[trying] = before[trying]
    return step, value, found


def bend(step: Tensor, change: Tensor) -> Tensor:
    """Return `step . change`, or infinity where rounding makes it not positive, which leaves the pair out."""
    product = dot(step, change)
    return torch.where(product > 0, product, torch.inf)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner product per classifier, `(M,)`."""
    return (first * second).sum((1, 2))
