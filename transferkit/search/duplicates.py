"""Near-duplicates in a set of images, and those that stand in two of its splits."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.similarity import finite_rows, groups_within, linked_rows, similar_pairs, usual_threshold, zero_rows

MOST_PAIRS = 10_000  # pairs that are kept; all are counted


class Pair(NamedTuple):
    """Two rows alike, the smaller row first."""

    first: int
    second: int
    cosine: float


class Duplicates(NamedTuple):
    """What was found.

    Attributes:
        threshold: the cosine from which two rows count as the same.
        pairs: rows at least as alike as the threshold, of highest cosine first; 10,000 at most.
        pair_count: how many such pairs there are.
        groups: rows of which any two are a pair, two and more per group.
        leaks: pairs across splits, of highest cosine first; 10,000 at most.
        leak_count: how many such pairs there are.
        zero_rows: rows without direction, which are in no pair.
    """

    threshold: float
    pairs: list[Pair]
    pair_count: int
    groups: list[list[int]]
    leaks: list[Pair]
    leak_count: int
    zero_rows: int


def open_embeddings(path: str | Path) -> Embeddings | None:
    """An embeddings table, if the path is one; None for images and manifests.

    Raises:
        UserError: as :meth:`Embeddings.load`, for a Parquet file with a column ``embedding``; no rows; NaN or
            infinity (row and path named).
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        names = ["embedding"]  # whose fault is told by load
    if "embedding" not in names:
        return None
    embeddings = Embeddings.load(path)
    finite_rows(embeddings.embedding, str(path), embeddings.paths)
    return embeddings


def find_duplicates(embeddings: Embeddings, threshold: float | None = None) -> Duplicates:
    """Near-duplicates as ranked pairs and as groups, and the pairs that leak from one split into another.

    Args:
        embeddings: the table.
        threshold: cosine, above 0 and at most 1; None for what sets rows apart in this table, see
            :func:`~transferkit.similarity.usual_threshold`.

    Raises:
        UserError: an empty table, or a threshold out of range.
    """
    values = embeddings.embedding
    threshold = usual_threshold(values) if threshold is None else threshold
    linked = linked_rows(values, threshold)
    members = torch.tensor(sorted(row for rows in linked for row in rows), dtype=torch.long)
    names = sorted({split for split in embeddings.splits if split})
    codes = torch.tensor([names.index(split) if split else -1 for split in embeddings.splits])[members]
    pairs, leaks = Best(), Best()
    for first, second, cosine in similar_pairs(values[members], threshold) if len(members) else ():
        across = (codes[first] != codes[second]) & (codes[first] >= 0) & (codes[second] >= 0)
        pairs.add(members[first], members[second], cosine)
        leaks.add(members[first[across]], members[second[across]], cosine[across])
    groups = groups_within(values, linked, threshold)
    return Duplicates(threshold, pairs.kept, pairs.count, groups, leaks.kept, leaks.count, len(zero_rows(values)))


class Best:
    """The pairs of highest cosine of all that are added: millions where many images are blank.

    Attributes:
        kept: the best of them, best first.
        count: how many were added.
    """

    def __init__(self) -> None:
        self.kept: list[Pair] = []
        self.count = 0

    def add(self, first: Tensor, second: Tensor, cosine: Tensor) -> None:
        """Add pairs, each a row of the three (P,)."""
        self.count += len(first)
        best = cosine.argsort(descending=True, stable=True)[:MOST_PAIRS]
        new = zip(*(part[best].tolist() for part in (first, second, cosine)), strict=True)
        self.kept = sorted([*self.kept, *(Pair(*pair) for pair in new)], key=lambda p: (-p.cosine, p))[:MOST_PAIRS]
