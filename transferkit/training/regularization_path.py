"""An optimizer that solves for the head of a frozen backbone: each step is a complete fit."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from transferkit.errors import UserError
from transferkit.probe.lbfgs import Fits, minimize
from transferkit.probe.objective import Objective
from transferkit.probe.standardize import Standardization, sum_rows

log = logging.getLogger(__name__)

# log10 of C. Few images need little regularization: with C up to 100 alone, a fit of 25 digits per class is up to 4
# points below a probe (tests/bench/bench_transfer.py).
STRONGEST, WEAKEST = -5.0, 4.0
TOLERANCE = 1e-5  # largest entry of the gradient, as in a probe
MOST_ITERATIONS = 300
MOST_LOGITS = 2**28  # of all training images: a gigabyte in float32


class RegularizationPath(torch.optim.Optimizer):
    """Softmax regression, or another convex problem, on embeddings in memory, from strong regularization to weak.

    Each step minimizes, over all rows, mean cross-entropy + |W|² / (2 C n) at the next of ``steps`` values of C from
    1e-5 to 1e4 (a regularization path: Friedman, Hastie and Tibshirani 2010, doi:10.18637/jss.v033.i01). W is on
    standardized features, by turns with variance 1 each and, by one scale for all, with variance 1 on average: which is
    better depends on the backbone. Every step starts from zero, as a probe does: on few rows, which can be told apart,
    many heads are within the tolerance at a large C, and that one is often better on other images. After a step the
    head holds the solution, folded back to raw embeddings: its quality does not depend on the scale of the features.

    Args:
        head: linear layer (D -> K) that receives the solutions; its own weights are not read.
        features: float32 (N, D) embeddings of all training images.
        target: int64 (N,) class numbers.
        steps: number of values of C.
        l2_normalize: whether the head reads L2-normalized embeddings.
        class_weights: (K,) weight of each class in the loss, or None.
        label_smoothing: in [0, 1).
        objective: what is minimized instead of softmax regression.
        row_weights: (N,) weight of each row in the loss, or None.

    Attributes:
        unsolved: the C of each step that did not reach the tolerance.

    Raises:
        UserError: an embedding is not finite.
    """

    def __init__(
        self,
        head: nn.Linear,
        features: Tensor,
        target: Tensor,
        steps: int,
        l2_normalize: bool = False,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        objective: type[Objective] = Objective,
        row_weights: Tensor | None = None,
    ) -> None:
        super().__init__([{"name": "head", "params": list(head.parameters()), "C": 0.0, "done": 0}], {"lr": 1.0})
        rows = F.normalize(features.float()) if l2_normalize else features.float()
        if not rows.isfinite().all():
            raise UserError("some training embeddings hold NaN or infinity; check the extractor and its weights")
        new = partial(
            objective,
            rows,
            target,
            head.out_features,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            row_weights=row_weights,
        )
        self.objectives = [new(kind) for kind in (Standardization.fit(rows, "zscore"), common_scale(rows))]
        self.steps = steps
        self.unsolved: list[float] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Solve for the next C, and return the value of the closure at the solution."""
        (group,) = self.param_groups
        weight, bias = group["params"]
        group["C"] = strength(group["done"], self.steps)
        objective = self.objectives[group["done"] % 2]
        fits = solve(objective, group["C"])
        if not fits.converged.all():
            self.unsolved.append(group["C"])
        columns, offsets = objective.standardization.fold(fits.parameters[0, :-1], fits.parameters[0, -1])
        weight.copy_(columns.T)
        bias.copy_(offsets)
        if distributed.is_available() and distributed.is_initialized():  # other processors may round differently
            for parameter in (weight, bias):
                distributed.broadcast(parameter, 0)
        group["done"] += 1
        with torch.enable_grad():
            return closure() if closure else None

    def warn_of_unsolved(self) -> None:
        """Warn if the head was not at its optimum at some C."""
        if self.unsolved:
            log.warning(
                "the head is not at its optimum at C = %s (gradient above %g after up to %d iterations); "
                'if best.ckpt is of such an epoch, try `optimizer="adamw"`',
                ", ".join(f"{c:.2g}" for c in self.unsolved),
                TOLERANCE,
                MOST_ITERATIONS,
            )


def common_scale(features: Tensor) -> Standardization:
    """Return one scale for all features `(N, D)`, after which their variance is 1 on average."""
    centered = Standardization.fit(features, "none")
    variance = sum_rows(rows.square() for rows in centered.chunks(features)).mean() / len(features)
    return replace(centered, scale=variance.sqrt().expand_as(centered.scale)) if variance else centered


def solve(objective: Objective, c: float) -> Fits:
    """Return the fit at one C from zero."""
    strengths = torch.tensor([c], dtype=torch.float64)
    start = torch.zeros(1, objective.features.shape[1] + 1, objective.classes, dtype=torch.float64)
    return minimize(objective, strengths, start, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS)


def is_solvable(options: Mapping[str, Any], views: Sequence[Tensor], classes: int) -> bool:
    """Return whether to use a :class:`RegularizationPath`: if the problem is convex and fits into memory.

    Args:
        options: ``optimizer``, ``lr_head``, ``head``, ``ema``, ``loss`` and ``dropout`` of the module.
        views: embeddings (N, D) of the training images; several if augmented, none if not cached.
        classes: number of classes.

    Raises:
        UserError: ``lbfgs`` is given, but cannot be used.
    """
    asked = options["optimizer"]
    averaged = options["ema"] is not None  # of heads that converge, not of those along a path
    rates = options["lr_head"] is not None or isinstance(options.get("weight_decay"), list)
    steps = averaged or rates or options["head"] == "zeroshot"  # a path begins from zero
    if options["loss"] == "asymmetric" and asked == "lbfgs":
        raise UserError('`optimizer="lbfgs"` solves convex problems, not `loss="asymmetric"`; give `optimizer="adamw"`')
    steps = steps or options["loss"] == "asymmetric"
    if asked not in ("auto", "lbfgs") or (asked == "auto" and steps):
        return False
    if len(views) == 1 and not options["dropout"] and len(views[0]) * classes <= MOST_LOGITS:
        return True
    if asked == "lbfgs":
        raise UserError(
            '`optimizer="lbfgs"` solves for the head on cached embeddings of a frozen backbone: without augmentation, '
            f"mixing, dropout and balance, with all batches, and up to {MOST_LOGITS} images times classes; "
            'give `optimizer="adamw"`'
        )
    return False


def path_length(trainer: Trainer) -> int:
    """Return the number of steps of a fit, one per epoch."""
    lengths = [length for length in (trainer.max_epochs, trainer.max_steps) if length is not None and length != -1]
    return max(1, min(lengths))


def strength(step: int, steps: int) -> float:
    """Return the C of a step: the middle of one of ``steps`` equal parts of the range of log C; the last stays."""
    share = (min(step, steps - 1) + 0.5) / steps
    return float(10 ** (STRONGEST + (WEAKEST - STRONGEST) * share))
