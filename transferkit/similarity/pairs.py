"""Near-duplicates: rows whose cosine reaches a threshold, in groups of which any two do."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.cosine import drawn_rows, unit_rows, zero_rows

ROUNDING = 1e-6
"""What float32 leaves of the cosine of two equal rows."""
LARGEST = 4096
"""Rows whose full matrix of cosines is made, 64 MiB."""

# Measured on the 396 photographs of hymenoptera and 80 of them changed, with a ResNet18 trained on CIFAR-10, a DINOv2-S
# and an untrained ResNet18. No two photographs are copies; their cosines are 0.76, 0.75 and 0.9934 in the middle. At a
# tenth of that distance (0.976, 0.976, 0.99934) 11, 0 and 0 of the 78,210 pairs count as the same, in groups of 3 at
# most; at a fixed 0.97 24, 0 and 78,160, chained to groups of 15, 0 and all 396. Of the changed ones are found again:
# compressed at quality 40 100, 99 and 100 %; halved and compressed 98, 92 and 100 %; brighter by a fifth 91, 98 and
# 38 %; cropped by 5 % at each side 90, 66 and 48 %; mirrored 56, 40 and 9 %.
SHARE = 0.1
"""Share of the usual distance between two rows below which they count as the same, where nothing else is said."""
FEWEST = 20
"""Rows from which the usual distance is measured; of fewer it says little, and ``FIXED`` is taken."""
FIXED = 0.976
LOWEST = 0.95  # rows that are usually orthogonal or opposite have not been measured
SAMPLE = 2000


def usual_threshold(embeddings: Tensor) -> float:
    """The cosine from which two rows are far more alike than rows of this table usually are.

    One minus a tenth of the median distance (1 - cosine) of two rows, of at most 2,000 drawn with a fixed seed:
    extractors differ in how alike they find everything, and so do sets of images. At least 0.95.

    Args:
        embeddings: `(N, D)`.

    Raises:
        UserError: as `unit_rows`.
    """
    unit = unit_rows(embeddings)
    there = torch.ones(len(unit), dtype=torch.bool)
    there[zero_rows(embeddings)] = False
    unit = unit[there.to(unit.device)]
    if len(unit) < FEWEST:
        return FIXED
    drawn = unit[drawn_rows(len(unit), SAMPLE, 0)]
    first, second = torch.triu_indices(len(drawn), len(drawn), 1)
    middle = float((drawn @ drawn.T)[first, second].median())
    return max(LOWEST, min(1.0, 1 - float(f"{SHARE * (1 - middle):.2g}")))  # two digits of the distance


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


def near_duplicates(embeddings: Tensor, threshold: float | None = None) -> list[list[int]]:
    """Groups of rows of which any two have a cosine of at least the threshold (complete linkage).

    A row that is like two others which are not like each other goes with the one that it is more like. Rows that
    are linked by more than 4,096 are cut at a higher threshold first, so that groups may be smaller than they could be.

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1; None for `usual_threshold`.

    Returns:
        Groups of two rows and more, each ascending, ordered by first row.

    Raises:
        UserError: as `similar_pairs`.
    """
    threshold = usual_threshold(embeddings) if threshold is None else threshold
    return groups_within(embeddings, linked_rows(embeddings, threshold), threshold)


def groups_within(embeddings: Tensor, linked: Sequence[Sequence[int]], threshold: float) -> list[list[int]]:
    """As `near_duplicates`, where the rows that are linked by pairs are known.

    Args:
        embeddings: `(N, D)`.
        linked: of `linked_rows`.
        threshold: the one that they are linked at.
    """
    return sorted(group for rows in linked for group in _complete(embeddings, rows, threshold, threshold))


def linked_rows(embeddings: Tensor, threshold: float) -> list[list[int]]:
    """Rows linked by pairs whose cosine is at least the threshold, however far apart the ends of a chain are.

    Neither the N x N scores nor the list of pairs is kept.

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1.

    Returns:
        Connected components of two rows and more, each ascending, ordered by first row.

    Raises:
        UserError: as `similar_pairs`.
    """
    root = torch.arange(len(embeddings), device=embeddings.device)
    for first, second, _ in similar_pairs(embeddings, threshold):
        root = _join(root, first, second)
    order = root.argsort(stable=True)
    sizes = torch.unique(root, return_counts=True)[1]  # a root is its group's smallest row
    return [group.tolist() for group in torch.split(order, sizes.tolist()) if len(group) > 1]


def joined_rows(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Return `(count,)` int64: for each row the smallest row that pairs link it with, however long the chain is.

    Args:
        count: rows.
        first: `(P,)` int64, one row of each pair.
        second: `(P,)` int64, the other.
    """
    return _join(torch.arange(count, device=first.device), first, second)


def _complete(embeddings: Tensor, rows: Sequence[int], threshold: float, linked_at: float) -> list[list[int]]:
    """Parts, of two rows and more, of some linked rows: in each any two reach the threshold."""
    if len(rows) == 2:
        return [list(rows)]
    part = embeddings[torch.tensor(rows, device=embeddings.device)]
    if len(rows) > LARGEST:
        tighter = 1 - (1 - linked_at) / 4  # as a rule they are blank images: few rounds lead to them
        if 1 - tighter < ROUNDING:  # as good as equal
            return [list(rows)]
        smaller = [[rows[row] for row in group] for group in linked_rows(part, tighter)]
        return [group for group in smaller for group in _complete(embeddings, group, threshold, tighter)]
    from sklearn.cluster import AgglomerativeClustering  # 1 s to import, and few tables need it

    unit = unit_rows(part)
    distance = (1 - unit @ unit.T).clamp(min=0).cpu().numpy()
    limit = 1 - threshold + 2 * ROUNDING  # it joins what is nearer than that
    method = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=limit
    )
    groups: dict[int, list[int]] = {}
    for row, label in zip(rows, method.fit_predict(distance).tolist(), strict=True):
        groups.setdefault(label, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


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
