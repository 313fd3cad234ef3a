"""Retrieval metrics of each query: whether its nearest references have its class."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from transferkit.similarity.neighbours import Scorer, select

TEMPERATURE = 0.07
"""Temperature of the kNN vote, as in Wu et al. 2018 (arXiv:1805.01978) and DINO."""


def retrieval(
    query: Tensor,
    query_class: Tensor,
    reference: Tensor,
    reference_class: Tensor,
    classes: int,
    *,
    ks: Sequence[int] = (1, 5, 10),
    exclude_self: bool = False,
    class_sized: bool = True,
) -> dict[str, Tensor]:
    """Return the retrieval metrics, one value per query; NaN for a query without a reference of its class.

    References are ranked by cosine, equal ones by row. R is the number of references of the query's class,
    without the query itself; a query with R = 0 is left out. K is clamped to the number of references.

    - `precision_at_1`: 1 if the nearest reference has the query's class, otherwise 0.
    - `hit_rate@K`: 1 if any of the K nearest has it, otherwise 0. Metric learning calls its mean Recall@K, R@K.
    - `recall@K`: the number of the K nearest that have it, divided by R, as in information retrieval.
    - `mrr`: 1 / rank of the first that has it.
    - `knn_accuracy@K`: 1 if the vote of the K nearest, weighted by exp(cosine / 0.07), is for it, otherwise 0; of
      equal votes the first class wins.
    - `r_precision`: the number of the R nearest that have it, divided by R.
    - `map_at_r`: (1/R) * sum over ranks i <= R of precision at i if the i-th has it, otherwise 0
      (Musgrave et al. 2020, arXiv:2003.08505).

    Args:
        query: `(Q, D)` unit rows.
        query_class: `(Q,)` int64 class numbers from 0.
        reference: `(N, D)` unit rows.
        reference_class: `(N,)` int64.
        classes: number of classes.
        ks: the K, each at least 1.
        exclude_self: query i is reference row i and does not find itself.
        class_sized: whether to compute the last two, whose lists are as long as the class: slow for large classes.

    Returns:
        Name to `(Q,)` float64; empty if no query has a reference of its class.
    """
    relevant = reference_class.bincount(minlength=classes)[query_class] - int(exclude_self)  # (Q,) R
    # Queries of similar R are processed together, so that a block's list is hardly longer than its queries need.
    order = relevant.argsort(stable=True)
    order = order[relevant[order] > 0]
    columns: dict[str, Tensor] = {}
    if len(order) == 0:
        return columns
    shortest = min(max(ks), len(reference) - int(exclude_self))
    longest = max(shortest, int(relevant.max())) if class_sized else shortest
    scorer = Scorer(reference)
    for rows in torch.split(order, scorer.rows(longest)):
        target, wanted = query_class[rows], relevant[rows]  # (B,)
        scores = scorer(query[rows])  # (B, N)
        if exclude_self:
            scores[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        k = max(shortest, int(wanted.max())) if class_sized else shortest
        cosine, index = select(scores, k)  # (B, k)
        neighbour = reference_class[index]
        found = neighbour == target[:, None]
        block = metrics_at_k(found, wanted, ks)
        block["mrr"] = 1 / first_rank(found, scores, target, reference_class)
        for reach, vote in votes(cosine, neighbour, classes, ks):
            block[f"knn_accuracy@{reach}"] = vote.argmax(1) == target
        if class_sized:
            block |= metrics_at_r(found, wanted)
        for name, value in block.items():
            columns.setdefault(name, query.new_full((len(query),), torch.nan, dtype=torch.float64))[rows] = (
                value.double()
            )
    return columns


def votes(cosine: Tensor, neighbour: Tensor, classes: int, ks: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield the votes of the K nearest for each class; a neighbor's vote has the weight exp(cosine / 0.07).

    Args:
        cosine: `(Q, k)`, descending.
        neighbour: `(Q, k)` int64, the neighbors' class numbers.
        classes: number of classes.
        ks: the K; clamped to k.

    Yields:
        Each K, ascending, and `(Q, classes)` float64, each row up to a factor; valid until the next K.
    """
    weight = ((cosine - cosine[:, :1]).double() / TEMPERATURE).exp()
    vote = weight.new_zeros(len(cosine), classes)
    cast = 0
    for k in sorted(set(ks)):
        vote.scatter_add_(1, neighbour[:, cast:k], weight[:, cast:k])
        cast = k
        yield k, vote


def metrics_at_k(found: Tensor, wanted: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Return precision, hit rate and recall from which of the nearest are relevant, `(B, k)`, and R, `(B,)`."""
    values = {"precision_at_1": found[:, 0]}
    for k in ks:
        hits = found[:, :k].sum(1)
        values[f"hit_rate@{k}"] = hits > 0
        values[f"recall@{k}"] = hits.double() / wanted
    return values


def metrics_at_r(found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return R-precision and MAP@R from which of the nearest are relevant, `(B, k)`, and R, `(B,)`."""
    rank = torch.arange(1, found.shape[1] + 1, device=found.device)
    found = found & (rank <= wanted[:, None])
    so_far = found.cumsum(1)
    precision = (so_far.float() / rank).masked_fill_(~found, 0)
    return {"r_precision": so_far[:, -1].double() / wanted, "map_at_r": precision.sum(1).double() / wanted}


def first_rank(found: Tensor, scores: Tensor, target: Tensor, reference_class: Tensor) -> Tensor:
    """Return the rank from 1 of the first relevant reference, `(B,)`: from the list, or by counting all before it."""
    rank = found.int().argmax(1) + 1
    unseen = (~found.any(1)).nonzero().flatten()
    column = torch.arange(len(reference_class), device=scores.device)
    for rows in torch.split(unseen, 32):  # few enough to stay in the cache
        score = scores[rows]  # (b, N)
        relevant = target[rows, None] == reference_class
        best, first = torch.where(relevant, score, -torch.inf).max(1, keepdim=True)
        before = torch.gt(score, best, out=torch.empty_like(score)).sum(1)  # integers in float32: exact to 2^24
        ties = (score == best) & (column < first)
        rank[rows] = 1 + before.long() + ties.sum(1)
    return rank
