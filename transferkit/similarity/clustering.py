"""Agreement of classes with clusters found without labels: k-means and normalized mutual information."""

import torch
from torch import Tensor


def nmi(first: Tensor, second: Tensor) -> float:
    """Return the normalized mutual information of two labelings: I(A; B) / mean of H(A) and H(B).

    >>> nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    1.0

    Args:
        first: `(N,)` int64 from 0.
        second: `(N,)` int64 from 0.

    Returns:
        From 0 (independent) to 1 (the same partition; also if both are a single class).
    """
    a, b = int(first.max()) + 1, int(second.max()) + 1
    cells, joint = torch.unique(first * b + second, return_counts=True)
    p = joint.double() / len(first)
    p_first = first.bincount(minlength=a).double() / len(first)
    p_second = second.bincount(minlength=b).double() / len(first)
    information = (p * (p / (p_first[cells // b] * p_second[cells % b])).log()).sum()
    entropy = -(torch.xlogy(p_first, p_first).sum() + torch.xlogy(p_second, p_second).sum()) / 2
    return 1.0 if entropy == 0 else min(1.0, max(0.0, float(information / entropy)))


def k_means(rows: Tensor, k: int, *, seed: int = 0, restarts: int = 3, iterations: int = 100) -> Tensor:
    """Return Lloyd's k-means from k-means++ starts (Arthur and Vassilvitskii 2007); the best restart is used.

    >>> k_means(torch.tensor([[0.0], [0.1], [9.0]]), 2).bincount().sort().values
    tensor([1, 2])

    Args:
        rows: `(N, D)` float32.
        k: clusters, from 1 to N; fewer are returned if there are fewer distinct rows.
        seed: seed of the starts.
        restarts: number of starts.
        iterations: maximum for Lloyd's algorithm; it ends when no row changes its cluster.

    Returns:
        `(N,)` int64 cluster numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    results = [lloyd(rows, plus_plus(rows, k, generator), iterations) for _ in range(restarts)]
    return min(results, key=lambda result: result[0])[1]


def plus_plus(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw centers from the rows, with probability proportional to the squared distance to the centers so far."""
    chosen = torch.randint(len(rows), (1,), generator=generator).to(rows.device)
    distance = rows.new_full((len(rows),), torch.inf)
    for _ in range(k - 1):
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(1))
        mass = distance.double().cumsum(0)
        point = torch.rand(1, generator=generator, dtype=torch.float64).to(rows.device) * mass[-1]
        drawn = torch.searchsorted(mass, point, right=True).clamp_(max=len(rows) - 1)
        chosen = torch.cat([chosen, drawn])
    return rows[chosen]


def lloyd(rows: Tensor, centers: Tensor, iterations: int) -> tuple[float, Tensor]:
    """Return inertia (sum of squared distances) and cluster numbers after convergence."""
    cluster = rows.new_full((len(rows),), -1, dtype=torch.int64)
    inertia = torch.inf
    for _ in range(iterations):
        before = cluster
        distance, cluster = nearest(rows, centers)
        inertia = float(distance.sum(dtype=torch.float64))
        if torch.equal(cluster, before):
            break
        sums = torch.zeros_like(centers).index_add_(0, cluster, rows)
        count = cluster.bincount(minlength=len(centers))
        centers = sums / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero().flatten()
        centers[empty] = rows[distance.topk(len(empty)).indices]  # restart at the rows farthest from their centers
    return inertia, cluster


def nearest(rows: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance to the nearest center `(N,)` and its number `(N,)`."""
    lengths = centers.square().sum(1)
    parts = []
    for block in torch.split(rows, max(1, 2**24 // len(centers))):
        least = torch.addmm(lengths, block, centers.T, alpha=-2).min(1)
        parts.append(((least.values + block.square().sum(1)).clamp_(min=0), least.indices))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
