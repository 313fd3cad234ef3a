"""Every similarity metric of a table of embeddings at once, overall and per class."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.clustering import k_means, nmi
from transferkit.similarity.cosine import Labels, class_codes, drawn_rows, same_width, unit_rows, zero_rows
from transferkit.similarity.geometry import class_sums, pair_means, silhouette, uniformity
from transferkit.similarity.retrieval import retrieval


class Evaluation(NamedTuple):
    """Metrics by name, counts as integers; what is undefined for the data is left out, so every value is a number."""

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
    """Measures what embeddings are worth, each row a query among the others or, where given, the reference.

    Rows are scaled to length 1 first. Counts come beside the metrics:

    - `rows`, `reference_rows`, `zero_norm_rows` (of both; their cosine is 0 with everything),
      `unlabelled_rows` (of both; left out of every metric but uniformity);
    - `queries`, `queries_skipped`: with and without another row of their class among the references; the
      retrieval metrics are means over the first;
    - `k_clamped`: the number of references, where a K is larger;
    - `nmi_rows`: rows clustered for `nmi`.

    Metrics: those of `retrieval`; `intra_class_cosine`, `inter_class_cosine`, `cosine_gap` (their
    difference) and `alignment` as in `PairMeans`, over pairs of a query and a reference where there is
    one; and of the queries alone `uniformity`, `silhouette_cosine` (mean of `silhouette`, exact at any
    size) and `nmi` (classes against as many k-means clusters, of a sample above `sample_rows`).
    Without labels: `uniformity` only. With fewer than two classes: no inter, gap, silhouette, nmi.

    Args:
        embeddings: `(N, D)`.
        labels: `(N,)` strings or integers, None for a row without label.
        reference: `(M, D)`; None: leave one out.
        reference_labels: `(M,)`.
        ks: the K of `hit_rate@K`, `recall@K`, `knn_accuracy@K`.
        class_sized: also `r_precision` and `map_at_r`.
        sample_rows: rows at most for `nmi`.
        seed: of that sample and of k-means.

    Returns:
        `overall`; and `per_class` by label, with the metrics that a class has of its own.

    Raises:
        UserError: as `unit_rows`; widths or lengths differ; a K below 1; mixed labels.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"ks = {tuple(ks)}: ask for at least 1 neighbour")
    unit = unit_rows(embeddings)
    other = unit if reference is None else unit_rows(reference, "reference")
    same_width(unit, other)
    overall: dict[str, float] = {"rows": len(unit), "zero_norm_rows": len(zero_rows(unit))}
    if reference is not None:
        overall["reference_rows"] = len(other)
        overall["zero_norm_rows"] += len(zero_rows(other))
    if len(unit) > 1:
        overall["uniformity"] = uniformity(unit)
    if labels is None:
        return Evaluation(overall, {})

    names, codes = class_codes(labels, [None] * len(other) if reference_labels is None else reference_labels)
    query = _labelled(unit, codes[0], "labels")
    against = query if reference is None else _labelled(other, codes[1], "reference_labels")
    overall["unlabelled_rows"] = len(unit) - len(query.rows)
    if reference is not None:
        overall["unlabelled_rows"] += len(other) - len(against.rows)
    available = len(against.rows) - (reference is None)
    if max(ks) > available:
        overall["k_clamped"] = available

    columns: dict[str, Tensor] = {"rows": query.classes.bincount(minlength=len(names))}
    for part in (
        _retrieval(query, against, len(names), ks, class_sized),
        _geometry(query, against, len(names)),
    ):
        overall |= part.overall
        columns |= part.columns
    overall |= _clusters(query, sample_rows, seed)
    per_class = {
        str(name): _defined({metric: column[row].item() for metric, column in columns.items()})
        for row, name in enumerate(names)
    }
    return Evaluation(_defined(overall), per_class)


class _Labelled(NamedTuple):
    rows: Tensor  # (N, D) unit rows
    classes: Tensor  # (N,) int64 from 0


class _Part(NamedTuple):
    overall: dict[str, float]
    columns: dict[str, Tensor]  # name to (C,)


def _labelled(rows: Tensor, classes: Tensor, name: str) -> _Labelled:
    if len(rows) != len(classes):
        raise UserError(f"{name}: {len(classes)} labels for {len(rows)} rows; give one a row, None where unknown")
    classes = classes.to(rows.device)
    known = classes >= 0
    return _Labelled(rows, classes) if known.all() else _Labelled(rows[known], classes[known])


def _defined(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _retrieval(query: _Labelled, reference: _Labelled, classes: int, ks: Sequence[int], class_sized: bool) -> _Part:
    """Means over the queries that have something to find, and over those of each class."""
    found = retrieval(*query, *reference, classes, ks=ks, exclude_self=query is reference, class_sized=class_sized)
    asked = query.rows.new_zeros(len(query.rows), dtype=torch.bool)
    if found:
        asked = ~found["mrr"].isnan()
    members = query.classes[asked]
    count = members.bincount(minlength=classes)
    part = _Part({"queries": int(asked.sum()), "queries_skipped": int((~asked).sum())}, {"queries": count})
    for name, values in found.items():
        part.overall[name] = float(values[asked].mean())
        part.columns[name] = members.bincount(values[asked], minlength=classes) / count
    return part


def _geometry(query: _Labelled, reference: _Labelled, classes: int) -> _Part:
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
    return _Part(overall, columns)


def _clusters(query: _Labelled, sample_rows: int, seed: int) -> dict[str, float]:
    """NMI of the classes and as many clusters, of a sample where there are many rows."""
    drawn = drawn_rows(len(query.rows), sample_rows, seed).to(query.rows.device)
    names, classes = torch.unique(query.classes[drawn], return_inverse=True)
    if len(names) < 2:
        return {}
    clusters = k_means(query.rows[drawn], len(names), seed=seed)
    return {"nmi": nmi(classes, clusters), "nmi_rows": len(drawn)}
