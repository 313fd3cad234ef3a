"""Near-duplicates: rows whose cosine reaches a threshold."""

from collections.abc import Iterator

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.rows import unit_rows

ROUNDING = 1e-6
"""What float32 leaves of the cosine of two equal rows."""


def similar_pairs(embeddings: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every pair of rows whose cosine is at least the threshold, block by block.

    A threshold of 1 finds equal directions (to 1e-6, the rounding of float32). Rows of zeros are in no pair.

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1.

    Yields:
        First row `(P,)` int64, second row `(P,)` int64, larger than the first, and cosine `(P,)` float32.

    Raises:
        UserError: as `unit_rows`; a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UserError(f"threshold = {threshold}: a cosine above 0 and at most 1 is wanted, such as 0.97")
    unit = unit_rows(embeddings)
    height, width = 1024, 8192  # 32 MiB of scores at a time
    for top in range(0, len(unit), height):
        for left in range(top, len(unit), width):
            score = unit[top : top + height] @ unit[left : left + width].T
            first, second = (score >= threshold - ROUNDING).nonzero(as_tuple=True)
            above = first + top < second + left  # each pair once, and no row with itself
            first, second = first[above], second[above]
            if len(first):
                yield first + top, second + left, score[first, second].clamp(max=1)


def near_duplicates(embeddings: Tensor, threshold: float = 0.97) -> list[list[int]]:
    """Groups of rows linked by pairs whose cosine is at least the threshold.

    A group is a connected component: two of its rows may be less alike than the threshold where others link
    them. Neither the N x N scores nor the list of pairs is kept.

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1.

    Returns:
        Groups of two rows and more, each ascending, ordered by first row.

    Raises:
        UserError: as `similar_pairs`.
    """
    root = torch.arange(len(embeddings), device=embeddings.device)
    for first, second, _ in similar_pairs(embeddings, threshold):
        root = _join(root, first, second)
    order = root.argsort(stable=True)
    sizes = torch.unique(root, return_counts=True)[1]  # a root is its group's smallest row
    return [group.tolist() for group in torch.split(order, sizes.tolist()) if len(group) > 1]


def _join(root: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Joins the groups of each pair, all pairs at once: hook larger roots to smaller, then shorten chains.

    Shiloach and Vishkin 1982, "An O(log n) parallel connectivity algorithm".
    """
    while True:
        low, high = torch.minimum(root[first], root[second]), torch.maximum(root[first], root[second])
        apart = low < high
        if not apart.any():
            return root
        first, second = first[apart], second[apart]
        root = root.scatter_reduce(0, high[apart], low[apart], "amin")
        while not torch.equal(root, root[root]):
            root = root[root]
