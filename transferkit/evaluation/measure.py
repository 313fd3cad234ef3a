"""What a table of embeddings is worth: measured, remarked upon, written."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transferkit import similarity
from transferkit.data.embeddings import Embeddings
from transferkit.evaluation.same_space import differences, some
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import write_json
from transferkit.similarity import Evaluation


def measure(table: Embeddings, reference: Embeddings | None = None, **options: Any) -> Evaluation:
    """Every metric of :func:`similarity.evaluate` that the tables have labels for.

    Args:
        table: the queries.
        reference: what they are compared with; None: each other.
        options: of :func:`similarity.evaluate`.

    Raises:
        UserError: as that function; NaN or infinity, row and path named.
    """
    similarity.finite_rows(table.embedding, "embeddings", table.paths)
    return similarity.evaluate(
        table.embedding,
        table.labels if any(label is not None for label in table.labels) else None,
        None if reference is None else reference.embedding,
        None if reference is None else reference.labels,
        **options,
    )


def remarks(
    table: Embeddings, reference: Embeddings | None, evaluation: Evaluation, ks: Sequence[int] = (1, 5, 10)
) -> list[str]:
    """What a reader of the figures has to know, one line each."""
    values, lines = evaluation.overall, []
    if "queries" not in values:
        lines.append("no labels: of all metrics only uniformity needs none")
    elif reference is not None and not any(reference.labels):
        lines.append("the reference has no labels: what compares labels with it is left out")
    elif values["queries_skipped"]:
        lines.append(f"not asked, as their class has no other row to find: {values['queries_skipped']:.0f} rows")
    if values.get("unlabelled_rows"):
        lines.append(f"{values['unlabelled_rows']:.0f} rows have no label: only uniformity counts them")
    if values.get("k_clamped"):
        lines.append(f"K = {max(ks)} is more than there is: clamped to {values['k_clamped']:.0f} rows")
    if values.get("nmi_rows", len(table)) < values["rows"] - values.get("unlabelled_rows", 0):
        lines.append(f"nmi is of {values['nmi_rows']:.0f} drawn rows")
    for name, side in (("", table), (" of the reference", reference)):
        zero = similarity.zero_rows(side.embedding).tolist() if side else []
        if side and zero:
            lines.append(f"{len(zero)} rows{name} are all zeros, their cosine is 0 with every row: {some(side, zero)}")
    if reference is not None:
        row_of = reference.row_of
        both = [(row, row_of[path]) for row, path in enumerate(table.paths) if path in row_of]
        rows, others = torch.tensor(both, dtype=torch.long).reshape(-1, 2).T
        same = rows[(table.embedding[rows] == reference.embedding[others]).all(1)].tolist()
        if same:
            lines.append(f"{len(same)} rows are among the references and find themselves: {some(table, same)}")
    return lines


def save_overall(evaluation: Evaluation, path: Path) -> None:
    """Write ``similarity.json``: one flat object, name to number."""
    write_json(path, evaluation.overall)


def save_per_class(evaluation: Evaluation, path: Path) -> None:
    """Write a CSV: a row a class, a column a metric; empty where a class has none."""
    columns = dict.fromkeys(name for values in evaluation.per_class.values() for name in values)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["class", *columns])
        writer.writeheader()
        writer.writerows({"class": name, **values} for name, values in evaluation.per_class.items())


def compare_remarks(tables: tuple[Embeddings, Embeddings], values: Mapping[str, float], k: int) -> list[str]:
    """What a reader of a comparison has to know, one line each.

    Args:
        tables: those compared.
        values: what :func:`similarity.compare` gave.
        k: the neighbours asked for.
    """
    lines = []
    prints = [table.metadata.get("data_fingerprint") for table in tables]
    if prints[0] != prints[1]:
        lines.append("their data_fingerprint differs: images of the same path are taken for the same image")
    if differing := differences(*tables):
        lines.append(f"they differ in {', '.join(differing)}")
    if k > values["rows"] - 1:
        lines.append(f"k = {k} is more than there is: clamped to {values['rows'] - 1:.0f} rows")
    if values["rsa_rows"] < values["rows"]:
        lines.append(f"rsa is of {values['rsa_rows']:.0f} drawn rows")
    for table, name in zip(tables, ("first", "second"), strict=True):
        zero = similarity.zero_rows(table.embedding).tolist()
        if zero:
            lines.append(f"{len(zero)} rows of the {name} are all zeros: {some(table, zero)}")
    if "cka" not in values:
        lines.append("cka is undefined: a table's rows are all equal, or there is a single one")
    return lines
