"""Data for figures of embeddings: class means, histograms of cosines, and maps of two axes."""

from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.similarity.cosine import unit_rows


class CosineCounts(NamedTuple):
    """Pairs of rows counted by cosine, in bins of equal width from -1 to 1."""

    intra: Tensor
    """`(bins,)` int64: pairs of the same class."""
    inter: Tensor
    """`(bins,)` int64: pairs of different classes."""


def cosine_counts(
    query: Tensor, query_class: Tensor, reference: Tensor, reference_class: Tensor, *, bins: int = 100
) -> CosineCounts:
    """Count the cosines of every query with every reference, block by block.

    Args:
        query: `(Q, D)` unit rows.
        query_class: `(Q,)` int64.
        reference: `(N, D)` unit rows; if it is `query` itself each pair counts once, and a row with itself does not.
        reference_class: `(N,)` int64.
        bins: number of bins.
    """
    counts = torch.zeros(2 * bins, dtype=torch.int64, device=query.device)
    same = query is reference
    column = torch.arange(len(reference), device=query.device)
    for rows in torch.split(torch.arange(len(query), device=query.device), 1024):
        left = int(rows[0]) if same else 0  # pairs with earlier columns have been counted
        cosine = query[rows] @ reference[left:].T
        bin_of = ((cosine + 1) * (bins / 2)).long().clamp_(0, bins - 1)
        bin_of += bins * (query_class[rows, None] != reference_class[left:])
        if same:
            bin_of = bin_of[column[left:] > rows[:, None]]
        counts += bin_of.flatten().bincount(minlength=2 * bins)
    return CosineCounts(counts[:bins], counts[bins:])


def class_means(unit: Tensor, classes: Tensor, count: int) -> Tensor:
    """Return the mean row of each class.

    >>> class_means(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]), 2)
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000]])

    Args:
        unit: `(N, D)` unit rows.
        classes: `(N,)` int64 from 0.
        count: C, the number of classes.

    Returns:
        `(C, D)` float32; zeros for a class without rows.
    """
    total = unit.new_zeros(count, unit.shape[1]).index_add_(0, classes, unit)
    return total / classes.bincount(minlength=count).clamp(min=1)[:, None]


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Project rows on their two axes of largest variance (PCA), computed in float64.

    `probe.objective.principal_axes` is another function: all axes of standardized rows, to precondition a solver.

    Args:
        rows: `(N, D)`; scaled to length 1 first.

    Returns:
        `(N, 2)` float32, zeros on an axis without variance; the value of largest magnitude on each axis is positive.
        `(2,)` float32: its share of the variance, zeros if all rows are equal.
    """
    blocks = torch.split(unit_rows(rows), 4096)
    mean = sum(block.sum(0, dtype=torch.float64) for block in blocks) / len(rows)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in blocks:
        covariance += (block - mean).T @ (block - mean)
    variance, axes = torch.linalg.eigh(covariance)  # (D,) ascending, (D, D)
    variance = variance.clamp(min=0).flip(0)
    points = torch.cat([(block - mean) @ axes.flip(1)[:, :2] for block in blocks])
    share = variance[:2] / variance.sum() if variance.sum() > 1e-12 * len(rows) else torch.zeros_like(variance[:2])
    points *= (share > 0).double()
    points *= points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    missing = 2 - points.shape[1]  # rows of a single number
    return torch.nn.functional.pad(points, (0, missing)).float(), torch.nn.functional.pad(share, (0, missing)).float()


def neighbour_map(rows: Tensor, *, seed: int = 0) -> Tensor:
    """Return scikit-learn's t-SNE (van der Maaten and Hinton 2008), started from the principal axes.

    Near rows stay near; far rows may not stay far.

    Args:
        rows: `(N, D)`, N at least 4; scaled to length 1 first. A thousand rows take seconds.
        seed: seed of the optimization.

    Returns:
        `(N, 2)` float32.
    """
    from sklearn.manifold import TSNE  # 1 s to import, and rarely needed

    start, _ = principal_axes(rows)
    start = start * (1e-4 / start[:, 0].std().clamp(min=1e-6))
    tsne = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init=start.numpy(), random_state=seed)
    return torch.from_numpy(tsne.fit_transform(unit_rows(rows).numpy()))
