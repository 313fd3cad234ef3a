"""Near-duplicates in a set of images, and those in two of its splits."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.groups import units_of
from transferkit.data.seen import fine_tuned
from transferkit.similarity import finite_rows, groups_within, linked_rows, similar_pairs, usual_threshold, zero_rows

MOST_PAIRS = 10_000  # that are kept; all are counted


class Pair(NamedTuple):
    """Two similar rows, the smaller row number first."""

    first: int
    second: int
    cosine: float


class Duplicates(NamedTuple):
    """Near-duplicates of a table.

    Attributes:
        threshold: the lowest cosine of a pair.
        pairs: rows with a cosine of at least the threshold, highest cosine first; at most 10,000.
        pair_count: number of all such pairs.
        groups: rows of which any two are a pair, two or more per group.
        leaks: pairs across splits, highest cosine first; at most 10,000.
        leak_count: number of all such pairs.
        zero_rows: number of rows that are zero, which are in no pair.
        loose: pairs without a given split in two groups, which a drawn split may part, highest cosine first; at most
            10,000, and none for a table without groups.
        loose_count: number of all such pairs.
    """

    threshold: float
    pairs: list[Pair]
    pair_count: int
    groups: list[list[int]]
    leaks: list[Pair]
    leak_count: int
    zero_rows: int
    loose: list[Pair]
    loose_count: int


def open_embeddings(path: str | Path) -> Embeddings | None:
    """Open a path if it is an embeddings table; return None for images and manifests.

    Raises:
        UserError: the table cannot be loaded, is empty, or holds NaN or infinity (row and path are named).
    """
    path = Path(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        names = ["embedding"]  # load reports what is wrong
    if "embedding" not in names:
        return None
    embeddings = Embeddings.load(path)
    finite_rows(embeddings.embedding, str(path), embeddings.paths)
    return embeddings


def find_duplicates(embeddings: Embeddings, threshold: float | None = None) -> Duplicates:
    """Find near-duplicates as ranked pairs and as groups, and the pairs across splits.

    Args:
        embeddings: the table.
        threshold: lowest cosine of a pair, in (0, 1]; None measures it on this table, see
            :func:`~transferkit.similarity.usual_threshold`.

    Raises:
        UserError: the table is empty, or the threshold out of range.
    """
    values = embeddings.embedding
    threshold = usual_threshold(values, fine_tuned(embeddings.metadata)) if threshold is None else threshold
    linked = linked_rows(values, threshold)
    members = torch.tensor(sorted(row for rows in linked for row in rows), dtype=torch.long)
    names = sorted({split for split in embeddings.splits if split})
    codes = torch.tensor([names.index(split) if split else -1 for split in embeddings.splits])[members]
    group_codes = None
    if embeddings.groups is not None:
        units = units_of(embeddings.paths, embeddings.groups)
        number = {unit: position for position, unit in enumerate(dict.fromkeys(units))}
        group_codes = torch.tensor([number[unit] for unit in units])[members]
    pairs, leaks, loose = Best(), Best(), Best()
    for first, second, cosine in similar_pairs(values[members], threshold) if len(members) else ():
        across = (codes[first] != codes[second]) & (codes[first] >= 0) & (codes[second] >= 0)
        pairs.add(members[first], members[second], cosine)
        leaks.add(members[first[across]], members[second[across]], cosine[across])
        if group_codes is not None:
            apart = (group_codes[first] != group_codes[second]) & (codes[first] < 0) & (codes[second] < 0)
            loose.add(members[first[apart]], members[second[apart]], cosine[apart])
    groups = groups_within(values, linked, threshold)
    zeros = len(zero_rows(values))
    return Duplicates(
        threshold, pairs.kept, pairs.count, groups, leaks.kept, leaks.count, zeros, loose.kept, loose.count
    )


class Best:
    """The pairs of highest cosine among all that are added, which can be millions if many images are blank.

    Attributes:
        kept: the best pairs, best first.
        count: number of pairs that were added.
    """

    def __init__(self) -> None:
        self.kept: list[Pair] = []
        self.count = 0

    def add(self, first: Tensor, second: Tensor, cosine: Tensor) -> None:
        """Add pairs: their rows and cosines, three tensors (P,)."""
        self.count += len(first)
        best = cosine.argsort(descending=True, stable=True)[:MOST_PAIRS]
        new = zip(*(part[best].tolist() for part in (first, second, cosine)), strict=True)
        self.kept = sorted([*self.kept, *(Pair(*pair) for pair in new)], key=lambda p: (-p.cosine, p))[:MOST_PAIRS]
