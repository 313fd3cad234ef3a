"""Retrieval where images have several labels: a reference is relevant if it shares one with the query."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.cosine import check_same_width, unit_rows, zero_rows
from transferkit.similarity.evaluate import Evaluation, defined
from transferkit.similarity.geometry import uniformity
from transferkit.similarity.neighbours import Scorer
from transferkit.similarity.retrieval import metrics_at_k, metrics_at_r


def shared_label_retrieval(
    query: Tensor,
    query_labels: Tensor,
    reference: Tensor,
    reference_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    exclude_self: bool = False,
) -> dict[str, Tensor]:
    """Return metrics of each query; NaN where no reference shares a label with it.

    As in :func:`~transferkit.similarity.retrieval.retrieval`, with R the number of references that share a label:
    ``precision_at_1``, ``hit_rate@K``, ``recall@K``, ``mrr``, ``r_precision``, ``map_at_r``; and ``jaccard@K``, the
    mean over the K nearest of the labels in common divided by all labels of the two.

    Args:
        query: `(Q, D)` unit rows.
        query_labels: `(Q, L)`, above 0 where a row has the label.
        reference: `(N, D)` unit rows.
        reference_labels: `(N, L)`.
        ks: the K, each at least 1; clamped to the number of references.
        exclude_self: query i is reference row i and does not find itself.

    Returns:
        Name to `(Q,)` float64.
    """
    theirs, scorer = reference_labels.double(), Scorer(reference)
    columns: dict[str, Tensor] = {}
    reach = len(reference) - int(exclude_self)
    if reach < 1:
        return columns
    for rows in torch.split(torch.arange(len(query), device=query.device), scorer.rows(len(reference))):
        own = query_labels[rows].double()
        scores = scorer(query[rows])  # (B, N)
        if exclude_self:
            scores[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :reach]
        common = (own @ theirs.T).gather(1, order)
        union = own.sum(1, keepdim=True) + theirs.sum(1)[order] - common
        found, wanted = common > 0, (common > 0).sum(1)
        block = {**metrics_at_k(found, wanted, ks), **metrics_at_r(found, wanted)}
        block["mrr"] = 1 / (found.int().argmax(1) + 1)
        for k in ks:
            block[f"jaccard@{k}"] = (common / union.clamp(min=1))[:, :k].mean(1)
        for name, value in block.items():
            column = columns.setdefault(name, query.new_full((len(query),), math.nan, dtype=torch.float64))
            column[rows] = value.double().masked_fill(wanted == 0, math.nan)
    return columns


def evaluate_labels(
    embeddings: Tensor,
    labels: Tensor,
    names: Sequence[str],
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> Evaluation:
    """Measure embeddings of images with several labels: means over all queries, and over those with each label.

    Args:
        embeddings: `(N, D)`.
        labels: `(N, L)`, 1 where a row has the label, NaN in rows that are not labeled.
        names: of the labels.
        reference: `(M, D)`; None: leave one out.
        reference_labels: `(M, L)`.
        ks: the K.

    Raises:
        UserError: a K below 1; widths differ; NaN, infinity or no rows.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"ks = {tuple(ks)}: ask for at least 1 neighbor")
    unit = unit_rows(embeddings)
    other, theirs = (unit, labels) if reference is None else (unit_rows(reference, "reference"), reference_labels)
    assert theirs is not None
    check_same_width(unit, other)
    overall: dict[str, float] = {"rows": len(unit), "zero_norm_rows": len(zero_rows(unit))}
    if reference is not None:
        overall |= {"reference_rows": len(other)}
        overall["zero_norm_rows"] += len(zero_rows(other))
    if len(unit) > 1:
        overall["uniformity"] = uniformity(unit)
    known, known_theirs = ~labels.isnan().any(1), ~theirs.isnan().any(1)
    overall["unlabelled_rows"] = int((~known).sum()) + (int((~known_theirs).sum()) if reference is not None else 0)
    asked, own = unit[known], labels[known]
    found = shared_label_retrieval(asked, own, other[known_theirs], theirs[known_theirs], ks, reference is None)
    available = int(known_theirs.sum()) - (reference is None)
    if max(ks) > available:
        overall["k_clamped"] = available
    used = ~found["mrr"].isnan() if found else torch.zeros(len(asked), dtype=torch.bool)
    overall |= {"queries": int(used.sum()), "queries_skipped": int((~used).sum())}
    overall |= {name: float(column[used].mean()) for name, column in found.items()}
    per_class = {}
    for number, name in enumerate(names):
        members = used & (own[:, number] > 0)
        values = {metric: float(column[members].mean()) for metric, column in found.items()}
        per_class[name] = defined({"rows": int((own[:, number] > 0).sum()), "queries": int(members.sum()), **values})
    return Evaluation(defined(overall), per_class)
