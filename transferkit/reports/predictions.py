"""Tables of predictions: their columns, and the files that fit, predict and a probe write."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.data.targets import NAME_OF_NUMBER, joined_labels, number_of
from transferkit.runtime.files import atomic_path

Columns = dict[str, pa.Array]


def ranked_columns(top_k: int) -> list[tuple[str, str]]:
    """Return the column names of the k most probable classes and their probabilities; those of the first are bare."""
    numbers = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    return [(f"prediction{number}", f"probability{number}") for number in numbers]


def prediction_columns(
    paths: Sequence[str], labels: Sequence[str | None], ranked: Iterable[tuple[Sequence[str] | pa.Array, Tensor]]
) -> Columns:
    """Return the columns ``path``, ``label``, and a class with its probability per rank.

    Args:
        paths: of N images.
        labels: their true classes, None where unknown.
        ranked: names (N,) and probabilities float32 (N,) of the predicted classes, the most probable first.
    """
    columns = {"path": pa.array(paths, pa.string()), "label": pa.array(labels, pa.string())}
    ranked = list(ranked)
    for (name, share), (classes, probability) in zip(ranked_columns(len(ranked)), ranked, strict=True):
        columns[name] = pa.array(classes, pa.string())
        columns[share] = pa.array(probability.numpy(), pa.float32())
    return columns


def most_probable(probability: Tensor, names: Sequence[str], top_k: int) -> list[tuple[pa.Array, Tensor]]:
    """Rank the classes of each image; of equally probable classes the first comes first.

    Args:
        probability: float32 (N, classes).
        names: class names in the order of the columns of ``probability``.
        top_k: number of classes, at most as many as there are.

    Returns:
        Names (N,) and probabilities (N,) of each rank.
    """
    batches = (probability[start : start + 1024] for start in range(0, len(probability), 1024))  # bounds the memory
    parts = [batch.sort(dim=1, descending=True, stable=True) for batch in batches]
    top_k = min(top_k, len(names))
    shares, classes = (torch.cat([part[which][:, :top_k] for part in parts]) for which in (0, 1))  # (N, top_k)
    words = pa.array(names, pa.string())
    return [(words.take(pa.array(classes[:, rank].numpy())), shares[:, rank]) for rank in range(top_k)]


def class_columns(probability: Tensor, names: Sequence[str]) -> Columns:
    """Return a column ``probability/CLASS`` per class, from float32 (N, classes)."""
    by_class = probability.T.contiguous().numpy()  # (classes, N)
    return {f"probability/{name}": pa.array(row, pa.float32()) for name, row in zip(names, by_class, strict=True)}


def label_predictions(
    paths: Sequence[str], labels: Sequence[str | None], found: Tensor, names: Sequence[str]
) -> Columns:
    """Return the columns ``path``, ``label`` and ``prediction``, labels between bars.

    Args:
        paths: of N images.
        labels: their true labels, None where unknown.
        found: (N, labels) bool, the predicted ones.
        names: of the columns of ``found``.
    """
    texts = [joined_labels(name for name, has in zip(names, row, strict=True) if has) for row in found.tolist()]
    return {
        "path": pa.array(paths, pa.string()),
        "label": pa.array(labels, pa.string()),
        "prediction": pa.array(texts, pa.string()),
    }


def number_predictions(paths: Sequence[str], labels: Sequence[str | None], values: Tensor) -> Columns:
    """Return the columns ``path``, ``target`` and ``prediction``, from numbers (N,)."""
    return {
        "path": pa.array(paths, pa.string()),
        NAME_OF_NUMBER: pa.array(map(number_of, labels), pa.float64()),
        "prediction": pa.array(values.double().numpy(), pa.float64()),
    }


def write_parquet(columns: Columns, path: Path) -> None:
    """Write columns as a Parquet file."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def write_csv(columns: Columns, path: Path) -> None:
    """Write columns as a CSV file in UTF-8, text in quotes; null is empty."""
    with atomic_path(path) as temporary:
        pyarrow.csv.write_csv(pa.table(columns), temporary)
