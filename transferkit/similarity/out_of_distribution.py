"""How unlike the training images an image is: distances between rows of unit length. Pure functions on tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.similarity.neighbours import top_k
from transferkit.similarity.shrinkage import ledoit_wolf

BLOCK = 1024
"""Queries at once."""


def neighbor_distance(query: Tensor, reference: Tensor, k: int) -> Tensor:
    """Return the Euclidean distance to the k-th nearest reference (Sun et al. 2022, arXiv:2204.06507).

    Args:
        query: `(Q, D)`, rows of unit length.
        reference: `(N, D)`, rows of unit length.
        k: at least 1; clamped to N.

    Returns:
        `(Q,)` float64 in [0, 2].
    """
    _, neighbor = top_k(query, reference, k, normalize=False)
    parts = torch.split(query, BLOCK), torch.split(neighbor[:, -1], BLOCK)
    far = [(rows.double() - reference[index].double()).norm(dim=1) for rows, index in zip(*parts, strict=True)]
    return torch.cat(far)


class Gaussians(NamedTuple):
    """Normal distributions of classes with one covariance.

    Attributes:
        whitening: `(D, D)` lower triangular; it turns the covariance into the identity.
        centers: `(C, D)`, the whitened means of the classes.
    """

    whitening: Tensor
    centers: Tensor


def fit_gaussians(rows: Tensor, target: Tensor, shrinkage: float | None = None) -> Gaussians:
    """Fit a mean for each class and one covariance for all (Lee et al. 2018, arXiv:1807.03888, section 2.1).

    The covariance is shrunk towards a multiple of the identity, since there may be fewer rows than dimensions.

    Args:
        rows: `(N, D)`, of unit length.
        target: `(N,)` int64 class numbers, -1 if unknown. If a class has fewer than five rows on average, or is
            unknown, one mean stands for all.
        shrinkage: in [0, 1]; by default that of Ledoit and Wolf 2004, see :func:`ledoit_wolf`.

    Returns:
        float32.
    """
    rows = rows.double()
    names, group = torch.unique(target, return_inverse=True)
    if names[0] < 0 or len(rows) < 5 * len(names):
        group = torch.zeros_like(target)
    counts = group.bincount()
    means = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64).index_add_(0, group, rows) / counts[:, None]
    residuals = rows - means[group]
    covariance = residuals.T @ residuals / len(rows)
    share = ledoit_wolf(residuals, covariance) if shrinkage is None else shrinkage
    scale = covariance.trace() / len(covariance)
    identity = torch.eye(len(covariance), dtype=torch.float64)
    # The least values keep it invertible where no shrinkage was asked for, or all rows are equal.
    covariance = (1 - share) * covariance + (share * scale).clamp(min=1e-9 * float(scale) + 1e-12) * identity
    whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
    return Gaussians(whitening.float(), (means @ whitening.T).float())


def mahalanobis_distance(query: Tensor, gaussians: Gaussians) -> Tensor:
    """Return the Mahalanobis distance to the nearest class mean (Lee et al. 2018, equation 2, its square root).

    Args:
        query: `(Q, D)`, rows of unit length.
        gaussians: of the training rows.

    Returns:
        `(Q,)` float64, at least 0.
    """
    whitening, centers = gaussians.whitening.double(), gaussians.centers.double()
    parts = [torch.cdist(rows.double() @ whitening.T, centers).amin(1) for rows in torch.split(query, BLOCK)]
    return torch.cat(parts)
