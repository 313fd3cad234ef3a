"""Scores of how well a linear classifier would do on embeddings, without fitting one: LogME and the shrunk H-score."""

import math

import torch
from torch import Tensor

from transferkit.similarity.shrinkage import ledoit_wolf

STEPS = 200
"""Points of the grid on which the evidence is maximized; the best one is refined."""
LOWEST, HIGHEST = -14.0, 8.0
"""Decimal logarithm of the ratio of the precisions, in units of the largest squared singular value."""


def log_me(features: Tensor, target: Tensor) -> float:
    """Return LogME: the highest log evidence per row of a Bayesian linear model, mean over classes.

    For each class, its one-hot column y is modeled as y ~ N(F w, 1/b) with w ~ N(0, 1/a), and a and b maximize the
    evidence p(y | F) (You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning",
    arXiv:2102.11005). For a given ratio t = a / b the best b is N / yᵀ(I + F Fᵀ / t)⁻¹y, so a search over t
    alone finds the maximum, where the paper iterates. Higher is better; only scores on the same rows compare.

    Args:
        features: `(N, D)`.
        target: `(N,)` int64, class numbers.
    """
    rows = features.double()
    count = len(rows)
    names, code = torch.unique(target, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(code, len(names)).double()  # (N, K)
    wide = rows.shape[1] > count
    gram = rows @ rows.T if wide else rows.T @ rows
    squared, basis = torch.linalg.eigh(gram)
    kept = squared > squared[-1].clamp(min=0) * 1e-12
    squared, basis = squared[kept], basis[:, kept]  # (r,) squared singular values of F, ascending
    inside = basis.T @ (one_hot if wide else rows.T @ one_hot)  # (r, K)
    power = inside.square() / (1 if wide else squared[:, None])  # of each column along the left singular vectors
    outside = (one_hot.square().sum(0) - power.sum(0)).clamp(min=0)  # (K,) what no weights explain

    def evidence(ratio: Tensor) -> Tensor:
        """Return the log evidence `(G, K)` at ratios `(G, K)`, with the best b for each."""
        grown = 1 + squared[None, :, None] / ratio[:, None, :]  # (G, r, K)
        residual = (power[None] / grown).sum(1) + outside
        precision = count / residual.clamp(min=1e-300)
        log_evidence: Tensor = 0.5 * (
            count * precision.log() - grown.log().sum(1) - count * (1 + math.log(2 * math.pi))
        )
        return log_evidence

    largest = squared[-1] if len(squared) else torch.tensor(1.0, dtype=torch.float64)
    exponent = torch.linspace(LOWEST, HIGHEST, STEPS, dtype=torch.float64)
    found = torch.cat(
        [evidence((largest * 10**part)[:, None].expand(-1, len(names))) for part in torch.split(exponent, 8)]
    )
    center, width = exponent[found.argmax(0)], (HIGHEST - LOWEST) / (STEPS - 1)
    for _ in range(6):  # each round narrows the bracket to a quarter
        offsets = torch.linspace(-width, width, 9, dtype=torch.float64)[:, None]
        near = evidence(largest * 10 ** (center + offsets))  # (9, K)
        center, width = center + offsets[near.argmax(0), 0], width / 4
    return float((near.amax(0) / count).mean())


def shrunk_h_score(features: Tensor, target: Tensor) -> float:
    """Return the H-score with a shrunk covariance: variance between classes over all variance, summed over directions.

    tr(Σ_a⁻¹ (1 - a) Σ_z), where Σ_z is the covariance of the class means and Σ_a = (1 - a) Σ + a tr(Σ)/D I the
    covariance of the features, shrunk by Ledoit and Wolf (2004) (Ibrahim et al. 2022, "Newer is not always better",
    arXiv:2110.06893; Bao et al. 2019). From 0 to K - 1; higher is better.

    Args:
        features: `(N, D)`.
        target: `(N,)` int64, class numbers.
    """
    centered = features.double() - features.double().mean(0)
    count, width = centered.shape
    covariance = centered.T @ centered / count
    level = covariance.trace() / width
    if level <= 0:
        return 0.0
    shrinkage = max(ledoit_wolf(centered, covariance), 1e-12)  # so that the matrix can be inverted
    shrunk = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(width, dtype=torch.float64)
    names, code, sizes = torch.unique(target, return_inverse=True, return_counts=True)
    means = torch.zeros(len(names), width, dtype=torch.float64).index_add_(0, code, centered) / sizes[:, None]
    between = means * (sizes[:, None] / count).sqrt()  # (K, D); its Gram matrix is the covariance of the means
    return float((1 - shrinkage) * (between.T * torch.linalg.solve(shrunk, between.T)).sum())
