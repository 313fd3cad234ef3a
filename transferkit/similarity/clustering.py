"""Do clusters found without labels agree with the classes: k-means and normalised mutual information."""

import torch
from torch import Tensor


def nmi(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information of two labellings: I(A; B) / mean of H(A) and H(B).

    Args:
        first: `(N,)` int64 from 0.
        second: `(N,)` int64 from 0.

    Returns:
        From 0 (independent) to 1 (the same partition; also where both are a single class).
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
    """Lloyd's k-means from k-means++ starts (Arthur and Vassilvitskii 2007); the best restart wins.

    Args:
        rows: `(N, D)` float32.
        k: clusters, from 1 to N; fewer come back where there are fewer different rows.
        seed: of the starts; the result depends on nothing else.
        restarts: how many starts are tried.
        iterations: of Lloyd's algorithm at most; it ends when no row changes its cluster.

    Returns:
        `(N,)` int64 cluster numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    results = [_lloyd(rows, _plus_plus(rows, k, generator), iterations) for _ in range(restarts)]
    return min(results, key=lambda result: result[0])[1]


def _plus_plus(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres drawn among the rows, each with probability as its squared distance to those drawn before."""
    chosen = torch.randint(len(rows), (1,), generator=generator).to(rows.device)
    distance = rows.new_full((len(rows),), torch.inf)
    for _ in range(k - 1):
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(1))
        mass = distance.double().cumsum(0)
        point = torch.rand(1, generator=generator, dtype=torch.float64).to(rows.device) * mass[-1]
        drawn = torch.searchsorted(mass, point, right=True).clamp_(max=len(rows) - 1)
        chosen = torch.cat([chosen, drawn])
    return rows[chosen]


def _lloyd(rows: Tensor, centres: Tensor, iterations: int) -> tuple[float, Tensor]:
    """Inertia (sum of squared distances) and cluster numbers after convergence."""
    cluster = rows.new_full((len(rows),), -1, dtype=torch.int64)
    inertia = torch.inf
    for _ in range(iterations):
        before = cluster
        distance, cluster = _nearest(rows, centres)
        inertia = float(distance.sum(dtype=torch.float64))
        if torch.equal(cluster, before):
            break
        sums = torch.zeros_like(centres).index_add_(0, cluster, rows)
        count = cluster.bincount(minlength=len(centres))
        centres = sums / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero().flatten()
        centres[empty] = rows[distance.topk(len(empty)).indices]  # start again at the rows served worst
    return inertia, cluster


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre `(N,)` and its number `(N,)`."""
    lengths = centres.square().sum(1)
    parts = []
    for block in torch.split(rows, max(1, 2**24 // len(centres))):
        nearest = torch.addmm(lengths, block, centres.T, alpha=-2).min(1)
        parts.append(((nearest.values + block.square().sum(1)).clamp_(min=0), nearest.indices))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
