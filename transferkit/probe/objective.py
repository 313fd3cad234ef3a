"""Softmax regression as a function of its parameters, for several strengths of regularization at once.

A parameter tensor holds M classifiers: `(M, D + 1, K)` float64, weights on standardized features and, last,
the bias. The features keep their values and dtype; the standardization is folded into the weights.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from transferkit.probe.standardize import Standardization, chunk_rows


@dataclass(frozen=True)
class Value:
    """The objective at M points.

    Attributes:
        loss: `(M,)` float64.
        gradient: `(M, D + 1, K)` float64.
        curvature: `(M,)` float64, mean second derivative by a logit. Of softmax, mean of `(1 - sum_k p_k^2) / (K - 1)`:
            1/K for equal probabilities, towards 0 as predictions become certain.
    """

    loss: Tensor
    gradient: Tensor
    curvature: Tensor


class Objective:
    """Mean cross-entropy + |W|^2 / (2 C n), the bias not penalized.

    Args:
        features: `(N, D)` float32 or float64; never copied as a whole.
        target: `(N,)` int64 class numbers below `classes`.
        classes: K.
        standardization: fitted on the same rows.
        class_weights: `(K,)` float, weight of the rows of each class in the mean; None for equal weights.
        label_smoothing: in [0, 1), the share of a row's target that is spread evenly over all classes
            (Szegedy et al. 2015, arXiv:1512.00567, section 7).
        row_weights: `(N,)` float, weight of each row in the mean, times that of its class; None for equal weights.
    """

    def __init__(
        self,
        features: Tensor,
        target: Tensor,
        classes: int,
        standardization: Standardization,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        row_weights: Tensor | None = None,
    ) -> None:
        self.features, self.target, self.classes = features, target, classes
        self.standardization, self.label_smoothing = standardization, label_smoothing
        self.weight: Tensor | None = None  # (N,) per row, mean 1
        weight = None if class_weights is None else class_weights.to(features.dtype)[target]
        if row_weights is not None:
            weight = row_weights.to(features) if weight is None else weight * row_weights.to(features)
        if weight is not None:
            self.weight = weight / weight.mean()
        self.row_scale = standardization.row_scale(features)
        self.spectrum, self.basis = principal_axes(features, standardization)

    def logits(self, parameters: Tensor) -> Tensor:
        """Return logits `(N, M, K)` in the features' dtype."""
        weight, bias = self.standardization.fold(parameters[:, :-1], parameters[:, -1])
        columns = weight.transpose(0, 1).flatten(1).to(self.features.dtype)  # (D, M K)
        logits: Tensor = self.features @ columns  # (N, M K)
        if self.row_scale is not None:
            logits *= self.row_scale
        logits += bias.flatten().to(logits.dtype)
        return logits.view(-1, *bias.shape)

    def __call__(self, parameters: Tensor, penalty: Tensor, logits: Tensor, slope: Tensor, step: Tensor) -> Value:
        """Return the value at `parameters`, whose logits are `logits + step * slope`.

        Args:
            parameters: `(M, D + 1, K)`.
            penalty: `(M,)` float64, 1 / (C n).
            logits: `(N, M, K)`.
            slope: `(N, M, K)`, the logits of the direction; not read if every `step` is 0.
            step: `(M,)` float64.
        """
        models, classes, count = len(parameters), self.classes, len(self.features)
        zeros = partial(torch.zeros, dtype=torch.float64, device=logits.device)
        loss, certainty = zeros(2, models)
        products = zeros(self.features.shape[1], models * classes)
        residuals = zeros(models * classes)
        size = chunk_rows(self.features)
        moved, factor = bool(step.any()), step.to(logits.dtype)[:, None]
        for start in range(0, count, size):
            rows = slice(start, start + size)
            here = logits[rows] + factor * slope[rows] if moved else logits[rows]  # (B, M, K)
            losses, sure, residual = self.at(here, rows)
            loss += self.weigh(losses, rows).sum(0, dtype=torch.float64)
            certainty += sure  # float32 within a chunk, float64 over the chunks
            residual = self.weigh(residual.flatten(1), rows)
            residuals += residual.sum(0)
            if self.row_scale is not None:
                residual *= self.row_scale[rows]
            products += self.features[rows].T @ residual  # (D, M K)
        center, scale = self.standardization.mean, self.standardization.scale
        products = (products - torch.outer(center, residuals)) / scale[:, None]
        gradient = torch.cat([products, residuals[None]]).div_(count).view(-1, models, classes)
        weight = parameters[:, :-1]
        gradient = gradient.transpose(0, 1).contiguous()
        gradient[:, :-1] += penalty[:, None, None] * weight
        return Value(
            loss=loss / count + penalty / 2 * weight.square().sum((1, 2)),
            gradient=gradient,
            curvature=self.curvature(certainty / count).clamp_min(1e-9),
        )

    def at(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of some rows and its slope.

        Args:
            logits: `(B, M, K)` of these rows.
            rows: which they are.

        Returns:
            Losses `(B, M)`; how certain the rows are, summed `(M,)`; the derivative by the logits `(B, M, K)`.
        """
        truth = self.target[rows, None, None].expand(-1, logits.shape[1], 1)
        log_p = logits.log_softmax(-1)
        losses = -self.expected(log_p, truth)
        p = log_p.exp_()
        certainty = p.square().sum((0, 2))
        residual = p.scatter_add_(2, truth, p.new_full((1, 1, 1), self.label_smoothing - 1).expand_as(truth))
        if self.label_smoothing:
            residual -= self.label_smoothing / self.classes
        return losses, certainty, residual

    def curvature(self, certainty: Tensor) -> Tensor:
        """Return the curvature `(M,)` of rows of this mean certainty `(M,)`."""
        return (1 - certainty) / (self.classes - 1)

    def expected(self, log_p: Tensor, truth: Tensor) -> Tensor:
        """Return the mean of `log_p` `(B, M, K)` under each row's target `truth` `(B, M, 1)`: `(B, M)`."""
        hard = log_p.gather(2, truth).squeeze(2)
        if not self.label_smoothing:
            return hard
        return hard.lerp(log_p.mean(2), self.label_smoothing)

    def weigh(self, values: Tensor, rows: slice) -> Tensor:
        """Multiply values of some rows `(B, ...)` by the rows' weights."""
        return values if self.weight is None else values * self.weight[rows, None]

    def precondition(self, vector: Tensor, curvature: Tensor, penalty: Tensor) -> Tensor:
        """Multiply `(M, D + 1, K)` by the inverse of curvature * covariance + penalty.

        At equal probabilities that is the Hessian itself (cf. the bound of Böhning 1992).
        """
        along = self.basis.T @ vector[:, :-1]  # (M, R, K)
        along /= (curvature[:, None] * self.spectrum + penalty[:, None])[..., None]
        return torch.cat([self.basis @ along, vector[:, -1:] / curvature[:, None, None]], 1)


def principal_axes(features: Tensor, standardization: Standardization) -> tuple[Tensor, Tensor]:
    """Return eigenvalues `(R,)` and eigenvectors `(D, R)` of the covariance of the standardized rows, float64.

    R = min(N, D): weights stay in the span of the rows, so few rows make a small problem.
    """
    count, width = features.shape
    if count < width:
        rows = torch.cat(list(standardization.chunks(features))).double()
        _, singular, axes = torch.linalg.svd(rows, full_matrices=False)
        return singular.square() / count, axes.T.contiguous()
    covariance = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for rows in standardization.chunks(features):
        covariance += rows.T @ rows
    values, axes = torch.linalg.eigh(covariance / count)
    return values.clamp_min(0), axes
