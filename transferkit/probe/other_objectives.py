"""One-vs-rest and linear regression, as :class:`~transferkit.probe.objective.Objective` is softmax regression.

The losses of K outputs are added, so each output is fitted as if it were alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transferkit.probe.objective import Objective


class OneVsRestObjective(Objective):
    """Sum over labels of the mean binary cross-entropy, + |W|^2 / (2 C n); as scikit-learn's OneVsRestClassifier.

    `target` is float `(N, K)`, 1 where a row has the label; `class_weights` are those of the rows that have it. Label
    smoothing moves targets from 0 and 1 towards a half.
    """

    def __init__(self, *arguments: Any, class_weights: Tensor | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)  # weights are those of rows
        ones = torch.ones(self.classes, dtype=self.features.dtype)
        self.positive = ones if class_weights is None else class_weights.to(self.features.dtype)

    def at(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses `(B, M)`, summed `p (1 - p)` `(M,)`, and the derivative `(B, M, K)`."""
        target = self.target[rows].to(logits.dtype).lerp(torch.tensor(0.5, dtype=logits.dtype), self.label_smoothing)
        there, rest = (self.positive * target)[:, None], (1 - target)[:, None]  # (B, 1, K)
        losses = (there * F.softplus(-logits) + rest * F.softplus(logits)).sum(2)
        p = logits.sigmoid()
        weight = there + rest
        return losses, (weight * p * (1 - p)).mean(2).sum(0), weight * p - there

    def curvature(self, certainty: Tensor) -> Tensor:
        """Return the mean of `p (1 - p)`."""
        return certainty


class NumberObjective(Objective):
    """Half the mean squared error + |W|^2 / (2 C n): ridge regression of strength 1 / C.

    `target` is float `(N, K)`. With `huber`, errors above it count linearly (Huber 1964).
    """

    huber = torch.inf

    def at(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses `(B, M)`, the number of errors that count as squares `(M,)`, and the derivative `(B, M, K)`."""
        error = logits - self.target[rows].to(logits.dtype)[:, None]
        residual = error.clamp(-self.huber, self.huber)
        losses = (residual * (error - residual / 2)).sum(2)
        return losses, (error == residual).to(logits.dtype).mean(2).sum(0), residual

    def curvature(self, certainty: Tensor) -> Tensor:
        """Return the share of errors that count as squares."""
        return certainty


class HuberObjective(NumberObjective):
    """Linear regression by Huber's loss, on a standardized target."""

    huber = 1.0
