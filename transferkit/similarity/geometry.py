"""Geometry of classes on the unit sphere: mean cosines, alignment, uniformity, silhouette; no N x N matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 4096
"""Rows converted to float64 at a time."""


class ClassSums(NamedTuple):
    """Sums from which means over pairs are computed, for C classes."""

    total: Tensor
    """`(C, D)` float64: sum of the class's rows."""
    squares: Tensor
    """`(C,)` float64: sum of their squared lengths, the number of its rows that are not zero."""
    members: Tensor
    """`(C,)` float64: number of rows."""


class PairMeans(NamedTuple):
    """Means over pairs; per class `(C,)`, or over all classes `()`; NaN if there is no pair."""

    intra: Tensor
    """Cosine of two rows of the same class."""
    inter: Tensor
    """Cosine of two rows of different classes."""
    alignment: Tensor
    """Squared distance of two rows of the same class (Wang and Isola 2020, arXiv:2005.10242, alpha = 2)."""


def class_sums(unit: Tensor, classes: Tensor, count: int) -> ClassSums:
    """Return sums over each class's rows, in float64.

    Args:
        unit: `(N, D)` unit rows.
        classes: `(N,)` int64 from 0.
        count: C, the number of classes.
    """
    total = unit.new_zeros(count, unit.shape[1], dtype=torch.float64)
    squares = unit.new_zeros(count, dtype=torch.float64)
    for rows, row_class in zip(torch.split(unit, ROWS), torch.split(classes, ROWS), strict=True):
        wide = rows.double()
        total.index_add_(0, row_class, wide)
        squares.index_add_(0, row_class, wide.square().sum(1))
    return ClassSums(total, squares, classes.bincount(minlength=count).double())


def pair_means(query: ClassSums, reference: ClassSums | None = None) -> tuple[PairMeans, PairMeans]:
    """Return mean cosines and alignment, exact from class sums: the sum of x.y over pairs is (sum of x).(sum of y).

    Args:
        query: sums of one table.
        reference: sums of another; None for pairs within one table, without pairs of a row with itself.

    Returns:
        The means over all pairs, and those of each class (inter: its rows with all others).
    """
    other = query if reference is None else reference
    dots = (query.total * other.total).sum(1)  # (C,) every row with every row of the class
    pairs = query.members * other.members
    squares = query.squares * other.members + query.members * other.squares
    if reference is None:
        dots, pairs, squares = dots - query.squares, pairs - query.members, squares - 2 * query.squares
    rest_dots = (query.total * (other.total.sum(0) - other.total)).sum(1)
    rest_pairs = query.members * (other.members.sum() - other.members)
    apart = (squares - 2 * dots).clamp(min=0)  # rounding only
    return (
        PairMeans(dots.sum() / pairs.sum(), rest_dots.sum() / rest_pairs.sum(), apart.sum() / pairs.sum()),
        PairMeans(dots / pairs, rest_dots / rest_pairs, apart / pairs),
    )


def silhouette(unit: Tensor, classes: Tensor, sums: ClassSums) -> Tensor:
    """Return the silhouette of each row with cosine distance, exact: the mean distance to a class is 1 - x.(its mean).

    (b - a) / max(a, b), where a is the mean distance to the row's own class without the row, and b the smallest
    mean distance to another class (Rousseeuw 1987). A single row of a class gets 0, as in scikit-learn.
    Takes N * C * D multiplications, so no sample is needed.

    Args:
        unit: `(N, D)` unit rows.
        classes: `(N,)` int64 from 0; at least two classes have rows.
        sums: `class_sums` of the same rows.

    Returns:
        `(N,)` float64 in [-1, 1].
    """
    # Small tensors kept from each block would break the heap into holes that no later block fits: gigabytes.
    values = torch.empty(len(unit), dtype=torch.float64, device=unit.device)
    height = max(1, 2**22 // len(sums.members))
    for top in range(0, len(unit), height):
        block = slice(top, top + height)
        wide, row_class = unit[block].double(), classes[block]
        dots = wide @ sums.total.T  # (B, C)
        others = sums.members[row_class] - 1  # (B,)
        own = dots.gather(1, row_class[:, None]).squeeze(1) - wide.square().sum(1)
        a = 1 - own / others.clamp(min=1)
        distance = (1 - dots / sums.members).masked_fill_(sums.members == 0, torch.inf)
        b = distance.scatter_(1, row_class[:, None], torch.inf).amin(1)
        largest = torch.maximum(a, b)
        flat = (others == 0) | (largest < 1e-6)  # a single row, or all distances are rounding errors of float32
        values[block] = ((b - a) / largest).masked_fill_(flat, 0).clamp_(-1, 1)
    return values


def uniformity(unit: Tensor) -> float:
    """Return the log of the mean of exp(-2 |x - y|^2) over all pairs of rows, exact (arXiv:2005.10242, t = 2).

    >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
    -8.0

    Args:
        unit: `(N, D)` unit rows; N * N * D / 2 multiplications.

    Returns:
        From -8 to 0 (all rows equal), about -4 if rows are spread evenly; NaN for a single row.
    """
    squares = torch.linalg.vector_norm(unit, dim=1).square()
    total = unit.new_zeros((), dtype=torch.float64)
    height, width = 1024, 4096  # 16 MiB of distances at a time
    for top in range(0, len(unit), height):
        for left in range(top, len(unit), width):
            x, y = slice(top, top + height), slice(left, left + width)
            distance = torch.addmm(squares[x, None] + squares[y], unit[x], unit[y].T, alpha=-2)
            closeness = distance.clamp_(min=0).mul_(-2).exp_()
            if left == top:  # holds the diagonal: keep the pairs above it
                closeness.triu_(1)
            total += closeness.sum(dtype=torch.float64)
    return float((total / (len(unit) * (len(unit) - 1) / 2)).log())
