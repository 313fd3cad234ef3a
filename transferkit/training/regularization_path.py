"""The head of a frozen backbone, solved instead of descended to: an optimizer whose step is a whole fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from transferkit.errors import UserError
from transferkit.probe.lbfgs import Fits, minimize
from transferkit.probe.objective import Objective
from transferkit.probe.standardize import Standardization

# log10 of C. Few images want little regularization: with C up to 100 alone, a fit of 25 digits per class is up to 4
# points below a probe (tests/bench/bench_transfer.py).
STRONGEST, WEAKEST = -5.0, 4.0
TOLERANCE = 1e-5  # largest entry of the gradient, as of a probe
MOST_ITERATIONS = 300
MOST_LOGITS = 2**28  # of all training images, in float32: a gigabyte


class RegularizationPath(torch.optim.Optimizer):
    """Softmax regression on embeddings that are all in memory, from strong regularization to weak.

    Each step minimizes, over all rows, mean cross-entropy + |W|² / (2 C n) with W on features of mean 0 and variance
    1, at the next of ``steps`` values of C from 1e-5 to 1e4, starting from the last solution (a regularization
    path: Friedman, Hastie and Tibshirani 2010, doi:10.18637/jss.v033.i01). Where that is within the tolerance already,
    the step starts from zero instead, as a probe does: on few rows, which can be told apart, many heads are within the
    tolerance at a large C, and that one is often better on other images. After a step the head holds the
    solution, folded back to raw embeddings, so its quality does not depend on the scale of the features.

    Args:
        head: linear layer (D -> K) to hold the solutions; the first does not depend on what it holds before.
        features: float32 (N, D) embeddings of all training images.
        target: int64 (N,) class numbers.
        steps: how many values of C there are.
        l2_normalize: whether the head reads L2-normalized embeddings.
        class_weights: (K,) weight of each class in the loss, or None.
        label_smoothing: in [0, 1).

    Attributes:
        unsolved: the C of each step that did not reach the tolerance.

    Raises:
        UserError: embeddings that are not finite.
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
    ) -> None:
        super().__init__([{"name": "head", "params": list(head.parameters()), "C": 0.0, "done": 0}], {"lr": 1.0})
        rows = F.normalize(features.float()) if l2_normalize else features.float()
        if not rows.isfinite().all():
            raise UserError("some training embeddings hold NaN or infinity; check the extractor and its weights")
        self.standardization = Standardization.fit(rows, "zscore")
        self.objective = Objective(
            rows, target, head.out_features, self.standardization, class_weights, label_smoothing
        )
        self.steps = steps
        self.unsolved: list[float] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Solve for the next C; what the closure, called at the solution, returns."""
        (group,) = self.param_groups
        weight, bias = group["params"]
        group["C"] = strength(group["done"], self.steps)
        start = self.standardization.unfold(weight.cpu().double().T, bias.cpu().double())
        start[:-1] = self.objective.project(start[:-1])
        if group["done"] == 0:  # a new head's weights are at random, and of no scale that suits the features
            start.zero_()
        fits = self.solve(group["C"], start)
        if not fits.iterations.any():
            fits = self.solve(group["C"], torch.zeros_like(start))
        if not fits.converged.all():
            self.unsolved.append(group["C"])
        columns, offsets = self.standardization.fold(fits.parameters[0, :-1], fits.parameters[0, -1])
        weight.copy_(columns.T)
        bias.copy_(offsets)
        if distributed.is_available() and distributed.is_initialized():  # other processors round otherwise
            for parameter in (weight, bias):
                distributed.broadcast(parameter, 0)
        group["done"] += 1
        with torch.enable_grad():
            return closure() if closure else None

    def solve(self, c: float, start: Tensor) -> Fits:
        """The fit at one C from parameters (D + 1, K)."""
        strengths = torch.tensor([c], dtype=torch.float64)
        return minimize(self.objective, strengths, start[None], tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS)


def is_solvable(options: Mapping[str, Any], views: Sequence[Tensor], classes: int) -> bool:
    """Whether the optimizer is to be a :class:`RegularizationPath`: where the problem is convex and fits into memory.

    Args:
        options: of the module: ``optimizer``, ``lr_head``, ``dropout``.
        views: embeddings (N, D) of the training images; several where they are augmented, none where not cached.
        classes: number of classes.

    Raises:
        UserError: it is asked for where it cannot be.
    """
    asked = options["optimizer"]
    if asked not in ("auto", "lbfgs") or (asked == "auto" and options["lr_head"] is not None):
        return False
    if len(views) == 1 and not options["dropout"] and len(views[0]) * classes <= MOST_LOGITS:
        return True
    if asked == "lbfgs":
        raise UserError(
            "--model.optimizer lbfgs solves for the head on a frozen backbone's cached embeddings: it takes no "
            f"augmentation, no dropout, all batches, and images times classes up to {MOST_LOGITS}; give adamw"
        )
    return False


def strength(step: int, steps: int) -> float:
    """The C of a step: the middles of ``steps`` equal parts of the range of log C, the last for any step beyond."""
    share = (min(step, steps - 1) + 0.5) / steps
    return float(10 ** (STRONGEST + (WEAKEST - STRONGEST) * share))
