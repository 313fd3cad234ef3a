"""All similarity metrics of a table of embeddings, overall and per class."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.clustering import k_means, nmi
from transferkit.similarity.cosine import Labels, check_same_width, class_codes, drawn_rows, unit_rows, zero_rows
from transferkit.similarity.geometry import class_sums, pair_means, silhouette, uniformity
from transferkit.similarity.retrieval import retrieval


class Evaluation(NamedTuple):
    """Metrics by name, counts as integers; undefined ones are left out, so every value is a number."""

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]


def evaluate(
    embeddings: Tensor,
    labels: Labels | None = None,
    reference: Tensor | None = None,
    reference_labels: Labels | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    class_sized: bool = True,
    sample_rows: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Measure the quality of embeddings: each row is a query among the others or, if given, the reference.

    Rows are scaled to length 1 first. Besides the metrics there are counts:

    - `rows`, `reference_rows`, `zero_norm_rows` (of both; their cosine is 0 with everything),
      `unlabelled_rows` (of both; left out of every metric but uniformity);
    - `queries`, `queries_skipped`: with and without another row of their class among the references; the
      retrieval metrics are means over the first;
    - `k_clamped`: the number of references, if a K is larger;
    - `nmi_rows`: rows clustered for `nmi`.

    Metrics: those of `retrieval`; `intra_class_cosine`, `inter_class_cosine`, `cosine_gap` (their
    difference) and `alignment` as in `PairMeans`, over pairs of a query and a reference if there is
    one; and of the queries alone `uniformity`, `silhouette_cosine` (mean of `silhouette`, exact at any
    size) and `nmi` (classes against as many k-means clusters, of a sample above `sample_rows`).
    Without labels: `uniformity` only. With fewer than two classes: no inter, gap, silhouette, nmi.

    Args:
        embeddings: `(N, D)`.
        labels: `(N,)` strings or integers, None for a row without label.
        reference: `(M, D)`; None: leave one out.
        reference_labels: `(M,)`.
        ks: the K of `hit_rate@K`, `recall@K`, `knn_accuracy@K`.
        class_sized: whether to compute `r_precision` and `map_at_r`.
        sample_rows: maximum number of rows for `nmi`.
        seed: seed of that sample and of k-means.

    Returns:
        `overall`; and `per_class` by label, with the metrics that are defined per class.

    Raises:
        UserError: widths or lengths differ; a K below 1; mixed labels; a table is not `(N, D)`, is empty, or has
            NaN or infinity.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"ks = {tuple(ks)}: ask for at least 1 neighbor")
    unit = unit_rows(embeddings)
    other = unit if reference is None else unit_rows(reference, "reference")
    check_same_width(unit, other)
    overall: dict[str, float] = {"rows": len(unit), "zero_norm_rows": len(zero_rows(unit))}
    if reference is not None:
        overall["reference_rows"] = len(other)
        overall["zero_norm_rows"] += len(zero_rows(other))
    if len(unit) > 1:
        overall["uniformity"] = uniformity(unit)
    if labels is None:
        return Evaluation(overall, {})

    names, codes = class_codes(labels, [None] * len(other) if reference_labels is None else reference_labels)
    query = labeled(unit, codes[0], "labels")
    against = query if reference is None else labeled(other, codes[1], "reference_labels")
    overall["unlabelled_rows"] = len(unit) - len(query.rows)
    if reference is not None:
        overall["unlabelled_rows"] += len(other) - len(against.rows)
    available = len(against.rows) - (reference is None)
    if max(ks) > available:
        overall["k_clamped"] = available

    columns: dict[str, Tensor] = {"rows": query.classes.bincount(minlength=len(names))}
    for part in (
        retrieval_means(query, against, len(names), ks, class_sized),
        geometry_means(query, against, len(names)),
    ):
        overall |= part.overall
        columns |= part.columns
    overall |= cluster_agreement(query, sample_rows, seed)
    per_class = {
        str(name): defined({metric: column[row].item() for metric, column in columns.items()})
        for row, name in enumerate(names)
    }
    return Evaluation(defined(overall), per_class)


class Labeled(NamedTuple):
    """Rows that have a label."""

    rows: Tensor  # (N, D) unit rows
    classes: Tensor  # (N,) int64 from 0


class Part(NamedTuple):
    """Some of the metrics."""

    overall: dict[str, float]
    columns: dict[str, Tensor]  # name to (C,)


def labeled(rows: Tensor, classes: Tensor, name: str) -> Labeled:
    """Return the rows that have a label, or raise UserError if the lengths differ."""
    if len(rows) != len(classes):
        raise UserError(f"{name}: {len(classes)} labels for {len(rows)} rows; give one per row, None if unknown")
    classes = classes.to(rows.device)
    known = classes >= 0
    return Labeled(rows, classes) if known.all() else Labeled(rows[known], classes[known])


def defined(values: dict[str, float]) -> dict[str, float]:
    """Return the values that are not NaN.

    >>> defined({"nmi": 0.5, "rsa": math.nan})
    {'nmi': 0.5}
    """
    return {name: value for name, value in values.items() if not math.isnan(value)}


def retrieval_means(query: Labeled, reference: Labeled, classes: int, ks: Sequence[int], class_sized: bool) -> Part:
    """Return means over the queries that have a reference of their class, and over those of each class."""
    found = retrieval(*query, *reference, classes, ks=ks, exclude_self=query is reference, class_sized=class_sized)
    used = query.rows.new_zeros(len(query.rows), dtype=torch.bool)
    if found:
        used = ~found["mrr"].isnan()
    members = query.classes[used]
    count = members.bincount(minlength=classes)
    part = Part({"queries": int(used.sum()), "queries_skipped": int((~used).sum())}, {"queries": count})
    for name, values in found.items():
        part.overall[name] = float(values[used].mean())
        part.columns[name] = members.bincount(values[used], minlength=classes) / count
    return part


def geometry_means(query: Labeled, reference: Labeled, classes: int) -> Part:
    """Return cosines within and between classes, alignment and silhouette, overall and per class."""
    sums = class_sums(*query, classes)
    total, each = pair_means(sums, None if query is reference else class_sums(*reference, classes))
    columns = {
        "intra_class_cosine": each.intra,
        "inter_class_cosine": each.inter,
        "cosine_gap": each.intra - each.inter,
        "alignment": each.alignment,
    }
    overall = {
        "intra_class_cosine": float(total.intra),
        "inter_class_cosine": float(total.inter),
        "cosine_gap": float(total.intra - total.inter),
        "alignment": float(total.alignment),
    }
    if 1 < int((sums.members > 0).sum()) < len(query.rows):
        values = silhouette(*query, sums)
        overall["silhouette_cosine"] = float(values.mean())
        columns["silhouette_cosine"] = query.classes.bincount(values, minlength=classes) / sums.members
    return Part(overall, columns)


def cluster_agreement(query: Labeled, sample_rows: int, seed: int) -> dict[str, float]:
    """Return the NMI of the classes and as many clusters, of a sample if there are many rows."""
    drawn = drawn_rows(len(query.rows), sample_rows, seed).to(query.rows.device)
    names, classes = torch.unique(query.classes[drawn], return_inverse=True)
    if len(names) < 2:
        return {}
    clusters = k_means(query.rows[drawn], len(names), seed=seed)
    return {"nmi": nmi(classes, clusters), "nmi_rows": len(drawn)}
