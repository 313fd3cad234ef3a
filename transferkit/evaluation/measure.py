"""Metrics of a table of embeddings: computed, with their caveats, and written."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transferkit import similarity
from transferkit.data.embeddings import Embeddings
from transferkit.data.targets import TARGETS, WORDS
from transferkit.errors import UserError
from transferkit.evaluation.same_space import differences, listed_paths
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import write_json
from transferkit.similarity import Evaluation
from transferkit.similarity.shared_labels import evaluate_labels


def measure(table: Embeddings, reference: Embeddings | None = None, **options: Any) -> Evaluation:
    """Compute every metric of :func:`similarity.evaluate` that the tables have labels for.

    Args:
        table: the queries.
        reference: the rows to compare them with; None compares them with each other.
        options: of :func:`similarity.evaluate`.

    Raises:
        UserError: an option is out of range, an embedding is NaN or infinite (row and path named), or the reference
            has another kind of target.
    """
    similarity.finite_rows(table.embedding, "embeddings", table.paths)
    if reference is not None and reference.kind != table.kind:
        raise UserError(
            f"the reference has {WORDS[reference.kind]}, the other table {WORDS[table.kind]}; embed both with the same"
        )
    if table.kind != "class":
        return measure_others(table, reference, options)
    return similarity.evaluate(
        table.embedding,
        table.labels if any(label is not None for label in table.labels) else None,
        None if reference is None else reference.embedding,
        None if reference is None else reference.labels,
        **options,
    )


def measure_others(table: Embeddings, reference: Embeddings | None, options: Mapping[str, Any]) -> Evaluation:
    """:func:`measure` of several labels, where sharing one counts, and of numbers, which are not compared."""
    tables = [table] if reference is None else [table, reference]
    others = None if reference is None else reference.embedding
    if table.kind == "number":
        return similarity.evaluate(table.embedding, None, others, None, **options)
    kind = TARGETS[table.kind]
    names = kind.names(label for each in tables for label in each.labels)
    own = kind.encode(table.labels, names)
    theirs = None if reference is None else kind.encode(reference.labels, names)
    return evaluate_labels(table.embedding, own, names, others, theirs, options.get("ks", (1, 5, 10)))


def caveats(
    table: Embeddings, reference: Embeddings | None, evaluation: Evaluation, ks: Sequence[int] = (1, 5, 10)
) -> list[str]:
    """Return what limits the metrics, one line each.

    Args:
        table: the queries.
        reference: the rows that they were compared with, if any.
        evaluation: what :func:`measure` returned.
        ks: the K that were asked for.
    """
    values, lines = evaluation.overall, []
    if "queries" not in values:
        what = "numbers instead of labels" if table.kind == "number" else "no labels"
        lines.append(f"{what}: only uniformity was computed")
    elif reference is not None and not any(reference.labels):
        lines.append("the reference has no labels: metrics that compare labels with it were not computed")
    elif values["queries_skipped"]:
        whose = "of their class" if table.kind == "class" else "shares a label with them"
        lines.append(f"{values['queries_skipped']:.0f} queries skipped: no other image {whose}")
    if values.get("unlabelled_rows"):
        lines.append(f"{values['unlabelled_rows']:.0f} rows have no label: only uniformity includes them")
    if values.get("k_clamped"):
        lines.append(f"K = {max(ks)} exceeds the number of rows: clamped to {values['k_clamped']:.0f}")
    if values.get("nmi_rows", len(table)) < values["rows"] - values.get("unlabelled_rows", 0):
        lines.append(f"nmi was computed on {values['nmi_rows']:.0f} rows, drawn at random")
    for name, side in (("", table), (" of the reference", reference)):
        zero = similarity.zero_rows(side.embedding).tolist() if side else []
        if side and zero:
            lines.append(
                f"{len(zero)} rows{name} are all zeros, their cosine with any row is 0: {listed_paths(side, zero)}"
            )
    if reference is not None:
        row_of = reference.row_of
        both = [(row, row_of[path]) for row, path in enumerate(table.paths) if path in row_of]
        rows, others = torch.tensor(both, dtype=torch.long).reshape(-1, 2).T
        same = rows[(table.embedding[rows] == reference.embedding[others]).all(1)].tolist()
        if same:
            lines.append(f"{len(same)} rows are also in the reference and find themselves: {listed_paths(table, same)}")
    return lines


def save_overall(evaluation: Evaluation, path: Path) -> None:
    """Write ``similarity.json``: one flat object from name to number."""
    write_json(path, evaluation.overall)


def save_per_class(evaluation: Evaluation, path: Path) -> None:
    """Write a CSV file with a row per class and a column per metric; empty cells where a metric is undefined."""
    columns = dict.fromkeys(name for values in evaluation.per_class.values() for name in values)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["class", *columns])
        writer.writeheader()
        writer.writerows({"class": name, **values} for name, values in evaluation.per_class.items())


def comparison_caveats(tables: tuple[Embeddings, Embeddings], values: Mapping[str, float], k: int) -> list[str]:
    """Return what limits a comparison, one line each.

    Args:
        tables: the two tables.
        values: what :func:`similarity.compare` returned.
        k: number of neighbors asked for.
    """
    lines = []
    prints = [table.metadata.get("data_fingerprint") for table in tables]
    if prints[0] != prints[1]:
        lines.append("their data_fingerprint differs: images with the same path are assumed to be the same")
    if differing := differences(*tables):
        lines.append(f"they differ in {', '.join(differing)}")
    if k > values["rows"] - 1:
        lines.append(f"k = {k} exceeds the number of rows: clamped to {values['rows'] - 1:.0f}")
    if values["rsa_rows"] < values["rows"]:
        lines.append(f"rsa was computed on {values['rsa_rows']:.0f} rows, drawn at random")
    for table, name in zip(tables, ("first", "second"), strict=True):
        zero = similarity.zero_rows(table.embedding).tolist()
        if zero:
            lines.append(f"{len(zero)} rows of the {name} are all zeros: {listed_paths(table, zero)}")
    if "cka" not in values:
        lines.append("cka is undefined: all rows of a table are equal, or there is only one")
    return lines
