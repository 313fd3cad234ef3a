"""Ridge regression in closed form, its strength chosen by the errors of leaving out each row in turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.probe.standardize import Kind, Standardization

ALPHAS: tuple[float, ...] = tuple(10 ** (-4 + point / 4) for point in range(41))
"""Strengths from 1e-4 to 1e6, evenly spaced in their logarithm."""
KINDS: tuple[Kind, ...] = ("zscore", "l2")


@dataclass(frozen=True)
class Ridge:
    """A linear function of embeddings, and how its strength was chosen.

    Attributes:
        weight: `(1, D)` in the features' dtype, for raw features (for unit rows if `standardization` is `l2`).
        bias: `(1,)`.
        standardization: `zscore` or `l2`.
        alpha: the strength, of the lowest error.
        errors: mean squared error of leaving out each row, per strength, float64.
    """

    weight: Tensor
    bias: Tensor
    standardization: Kind
    alpha: float
    errors: Tensor


def fit_ridge(
    features: Tensor,
    target: Tensor,
    alphas: Sequence[float] = ALPHAS,
    kinds: Sequence[Kind] = KINDS,
    row_weights: Tensor | None = None,
) -> Ridge:
    """Minimize |y - Xw - b|^2 + alpha |w|^2 on standardized rows, for the best strength and standardization.

    The error of a row that is left out is its residual divided by one minus its leverage, so no fit is repeated (as in
    scikit-learn's RidgeCV).

    Args:
        features: `(N, D)` float32 or float64.
        target: `(N,)`.
        alphas: strengths, ascending; of equal errors the strongest is taken.
        kinds: standardizations, fitted on these rows; of equal errors the first is taken.
        row_weights: `(N,)` weight of the square of each row's error, in the choice of the strength, too; or None.
    """
    weights = torch.ones(len(features)) if row_weights is None else row_weights
    fits = [fit_kind(features, target.double(), alphas, kind, weights.double()) for kind in kinds]
    return min(fits, key=lambda fit: float(fit.errors.min()))


def fit_kind(features: Tensor, target: Tensor, alphas: Sequence[float], kind: Kind, weights: Tensor) -> Ridge:
    """:func:`fit_ridge` with one standardization."""
    standardization = Standardization.fit(features, kind)
    rows = torch.cat(list(standardization.chunks(features.double())))
    share, root = weights / weights.sum(), weights.sqrt()[:, None]
    center, mean = share @ rows, share @ target
    rows = (rows - center) * root
    if len(rows) > rows.shape[1]:
        values, axes = torch.linalg.eigh(rows.T @ rows)
        spectrum = values.clamp_min(0)
    else:
        _, singular, right = torch.linalg.svd(rows, full_matrices=False)
        spectrum, axes = singular.square(), right.T
    scores, centered = rows @ axes, (target - mean) * root[:, 0]  # (N, R), (N,)
    along, strengths = scores.T @ centered, torch.tensor(alphas, dtype=torch.float64)
    shrunk = 1 / (spectrum[:, None] + strengths)  # (R, A)
    residual = centered[:, None] - scores @ (along[:, None] * shrunk)  # (N, A)
    leverage = share[:, None] + scores.square() @ shrunk
    errors = (residual / (1 - leverage).clamp_min(1e-12)).square().mean(0)
    best = len(alphas) - 1 - int(errors.flip(0).argmin())
    slope = axes @ (along * shrunk[:, best])
    weight, bias = standardization.fold(slope[:, None], (mean - center @ slope)[None])
    dtype = features.dtype
    return Ridge(weight.T.to(dtype).contiguous(), bias.to(dtype), kind, alphas[best], errors)
