"""Near-duplicates: rows whose cosine reaches a threshold, in groups in which every pair does."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.cosine import drawn_rows, unit_rows, zero_rows

ROUNDING = 1e-6
"""Rounding error in float32 of the cosine of two equal rows."""
LARGEST = 4096
"""Maximum number of rows for a full matrix of cosines, 64 MiB."""

# Measured on the 396 photographs of hymenoptera and 80 modified ones, with a ResNet18 trained on CIFAR-10, a DINOv2-S
# and an untrained ResNet18. No two photographs are copies; their median cosines are 0.76, 0.75 and 0.9934. At a tenth
# of that distance (0.976, 0.976, 0.99934) 11, 0 and 0 of the 78,210 pairs count as the same, in groups of at most 3;
# at a fixed 0.97 24, 0 and 78,160, chained to groups of 15, 0 and all 396. Of the modified ones are found:
# compressed at quality 40 100, 99 and 100 %; halved and compressed 98, 92 and 100 %; brighter by a fifth 91, 98 and
# 38 %; cropped by 5 % on each side 90, 66 and 48 %; mirrored 56, 40 and 9 %.
SHARE = 0.1
"""Default share of the usual distance between two rows below which they count as the same."""
FEWEST = 20
"""Minimum number of rows to measure the usual distance; for fewer, ``FIXED`` is used."""
FIXED = 0.976
LOWEST = 0.95  # tables whose rows are usually orthogonal or opposite have not been measured
SAMPLE = 2000

# A network that was fine-tuned on the classes of the images makes those of a class alike. With the ResNet18 of
# CIFAR-10, fine-tuned on the photographs, and 30 compressed, smaller or cropped copies among 426 images, 5,358 pairs
# count as the same at a tenth of the median distance; at an eighth of the median distance to the tenth nearest row 28,
# all of them copies (at the stage before the last 31 and 29). Fine-tuned on digits, 146,062 and 15 of 1,797 images do.
NEAREST, PART = 10, 0.125
"""The nearest row, and which share of its usual distance, below which two rows of a fine-tuned network are the same."""


def usual_threshold(embeddings: Tensor, fine_tuned: bool = False) -> float:
    """Return the cosine above which two rows are far more similar than rows of this table usually are.

    One minus a tenth of the median distance (1 - cosine) of two rows, of at most 2,000 drawn with a fixed seed:
    the usual cosine depends on the extractor and on the images. At least 0.95.

    Args:
        embeddings: `(N, D)`.
        fine_tuned: whether the extractor has learned classes of these images, so that those of a class are alike: the
            distance is then at most an eighth of the median distance of a row to its tenth nearest.

    Raises:
        UserError: the table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    unit = unit_rows(embeddings)
    nonzero = torch.ones(len(unit), dtype=torch.bool)
    nonzero[zero_rows(embeddings)] = False
    unit = unit[nonzero.to(unit.device)]
    if len(unit) < FEWEST:
        return FIXED
    drawn = unit[drawn_rows(len(unit), SAMPLE, 0)]
    cosine = drawn @ drawn.T
    first, second = torch.triu_indices(len(drawn), len(drawn), 1)
    distance = SHARE * (1 - float(cosine[first, second].median()))
    if fine_tuned:
        nearest = cosine.fill_diagonal_(-2).topk(NEAREST, 1).values[:, -1]
        distance = min(distance, PART * (1 - float(nearest.median())))
    return max(LOWEST, min(1.0, 1 - float(f"{distance:.2g}")))  # two digits of the distance


def similar_pairs(embeddings: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield every pair of rows whose cosine is at least the threshold, block by block.

    A threshold of 1 finds equal directions (to 1e-6, the rounding of float32). Rows of zeros are in no pair.

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1.

    Yields:
        First row `(P,)` int64, second row `(P,)` int64, larger than the first, and cosine `(P,)` float32.

    Raises:
        UserError: a threshold outside (0, 1]; the table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"`threshold` is {threshold}; give a cosine above 0 and at most 1, such as 0.97")
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
    """Return groups of rows in which every pair has a cosine of at least the threshold (complete linkage).

    A row that is similar to two others which are not similar to each other joins the more similar one. More than
    4,096 linked rows are split at a higher threshold first, so that groups may be smaller than possible.

    >>> near_duplicates(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), threshold=0.97)
    [[0, 2]]

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1; None for `usual_threshold`.

    Returns:
        Groups of at least two rows, each ascending, ordered by first row.

    Raises:
        UserError: a threshold outside (0, 1]; the table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    threshold = usual_threshold(embeddings) if threshold is None else threshold
    return groups_within(embeddings, linked_rows(embeddings, threshold), threshold)


def groups_within(embeddings: Tensor, linked: Sequence[Sequence[int]], threshold: float) -> list[list[int]]:
    """Return `near_duplicates` of rows that `linked_rows` has found.

    Args:
        embeddings: `(N, D)`.
        linked: result of `linked_rows`.
        threshold: the threshold that was given to it.
    """
    return sorted(group for rows in linked for group in complete_groups(embeddings, rows, threshold, threshold))


def linked_rows(embeddings: Tensor, threshold: float) -> list[list[int]]:
    """Return rows that are linked by pairs whose cosine is at least the threshold, also by chains of pairs.

    Neither the N x N scores nor the list of pairs is kept in memory.

    >>> linked_rows(torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.7, 0.7], [-1.0, 0.0]]), threshold=0.85)
    [[0, 1, 2]]

    Args:
        embeddings: `(N, D)`.
        threshold: cosine, above 0 and at most 1.

    Returns:
        Connected components of at least two rows, each ascending, ordered by first row.

    Raises:
        UserError: a threshold outside (0, 1]; the table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    root = torch.arange(len(embeddings), device=embeddings.device)
    for first, second, _ in similar_pairs(embeddings, threshold):
        root = join(root, first, second)
    order = root.argsort(stable=True)
    sizes = torch.unique(root, return_counts=True)[1]  # a root is its group's smallest row
    return [group.tolist() for group in torch.split(order, sizes.tolist()) if len(group) > 1]


def joined_rows(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Return for each row the smallest row that pairs link it with, through any number of links: int64 (count,).

    Args:
        count: number of rows.
        first: int64 (P,), one row of each pair.
        second: int64 (P,), the other row.
    """
    return join(torch.arange(count, device=first.device), first, second)


def complete_groups(embeddings: Tensor, rows: Sequence[int], threshold: float, linked_at: float) -> list[list[int]]:
    """Split linked rows into groups, of at least two rows, in which every pair reaches the threshold."""
    if len(rows) == 2:
        return [list(rows)]
    part = embeddings[torch.tensor(rows, device=embeddings.device)]
    if len(rows) > LARGEST:
        tighter = 1 - (1 - linked_at) / 4  # usually they are blank images: a few rounds isolate them
        if 1 - tighter < ROUNDING:  # equal up to rounding
            return [list(rows)]
        smaller = [[rows[row] for row in group] for group in linked_rows(part, tighter)]
        return [group for group in smaller for group in complete_groups(embeddings, group, threshold, tighter)]
    from sklearn.cluster import AgglomerativeClustering  # 1 s to import, and few tables need it

    unit = unit_rows(part)
    distance = (1 - unit @ unit.T).clamp(min=0).cpu().numpy()
    limit = 1 - threshold + 2 * ROUNDING  # groups nearer than that are merged
    method = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=limit
    )
    groups: dict[int, list[int]] = {}
    for row, label in zip(rows, method.fit_predict(distance).tolist(), strict=True):
        groups.setdefault(label, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def join(root: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Merge the groups of each pair, all pairs at once: hook larger roots to smaller, then shorten chains.

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
