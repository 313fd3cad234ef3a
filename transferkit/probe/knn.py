"""Classifiers without training: k nearest neighbors and the nearest class mean, by cosine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transferkit.similarity.cosine import unit_rows
from transferkit.similarity.neighbours import top_k
from transferkit.similarity.retrieval import votes

K_NEIGHBORS = (1, 5, 10, 20, 100, 200)
QUERIES = 256


def knn_predictions(
    query: Tensor, reference: Tensor, target: Tensor, classes: int, *, ks: Sequence[int] = K_NEIGHBORS
) -> dict[int, Tensor]:
    """Predict the class with the most votes among the k nearest neighbors, a vote weighing exp(cosine / 0.07).

    Args:
        query: `(Q, D)`, rows of unit length.
        reference: `(N, D)`, rows of unit length.
        target: `(N,)` int64 class numbers of the references.
        classes: K.
        ks: numbers of neighbors, each clamped to N.

    Returns:
        k (after clamping) -> class numbers `(Q,)` int64.
    """
    reach = sorted({min(k, len(reference)) for k in ks})
    blocks: dict[int, list[Tensor]] = {k: [] for k in reach}
    for start in range(0, len(query), QUERIES):
        rows = query[start : start + QUERIES]
        cosine, neighbor = top_k(rows, reference, reach[-1], normalize=False)
        for k, vote in votes(cosine, target[neighbor], classes, reach):
            blocks[k].append(vote.argmax(1))
    return {k: torch.cat(parts) for k, parts in blocks.items()}


def nearest_class_mean(query: Tensor, reference: Tensor, target: Tensor, classes: int) -> Tensor:
    """Predict the class whose mean unit row has the highest cosine with the query (cf. Mensink et al. 2013).

    Args:
        query: `(Q, D)`, rows of unit length.
        reference: `(N, D)`, rows of unit length.
        target: `(N,)` int64, every class below `classes` present.
        classes: K.

    Returns:
        `(Q,)` int64.
    """
    sums = torch.zeros(classes, reference.shape[1]).index_add_(0, target, reference)
    return (query @ unit_rows(sums, "class means").T).argmax(1)
