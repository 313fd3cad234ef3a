"""Near-duplicates in a set of images, and those that stand in two of its splits."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from transferkit.data.sources import DIGITS, ImageTable
from transferkit.embeddings import Embeddings
from transferkit.similarity import finite_rows, near_duplicates, similar_pairs, zero_rows

MOST_LEAKS = 10_000  # pairs that are kept; all are counted


class Leak(NamedTuple):
    """Two rows alike that stand in different splits, the smaller row first."""

    first: int
    second: int
    cosine: float


class Duplicates(NamedTuple):
    """What was found.

    Attributes:
        groups: rows that are linked by pairs at least as alike as the threshold, two and more a group.
        leaks: pairs across splits, of highest cosine first; 10,000 at most.
        leak_count: how many such pairs there are.
        zero_rows: rows without direction, which are in no group.
    """

    groups: list[list[int]]
    leaks: list[Leak]
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


def find_duplicates(embeddings: Embeddings, threshold: float = 0.97) -> Duplicates:
    """Groups of near-duplicates, and the pairs of them that leak from one split into another.

    Args:
        embeddings: the table.
        threshold: cosine, above 0 and at most 1.

    Raises:
        UserError: an empty table, or a threshold out of range.
    """
    values = embeddings.embedding
    groups = near_duplicates(values, threshold)
    members = torch.tensor(sorted(row for group in groups for row in group), dtype=torch.long)
    names = sorted({split for split in embeddings.splits if split})
    codes = torch.tensor([names.index(split) if split else -1 for split in embeddings.splits])[members]
    leaks: list[Leak] = []
    count = 0
    if len(members) and len(names) > 1:
        for first, second, cosine in similar_pairs(values[members], threshold):
            across = (codes[first] != codes[second]) & (codes[first] >= 0) & (codes[second] >= 0)
            count += int(across.sum())
            first, second, cosine = members[first[across]], members[second[across]], cosine[across]
            best = cosine.argsort(descending=True, stable=True)[:MOST_LEAKS]  # millions where many images are blank
            parts = (part[best].tolist() for part in (first, second, cosine))
            leaks += [Leak(*leak) for leak in zip(*parts, strict=True)]
            leaks = sorted(leaks, key=lambda leak: (-leak.cosine, leak))[:MOST_LEAKS]
    return Duplicates(groups, leaks, count, len(zero_rows(values)))


def content_hashes(images: ImageTable, paths: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file's bytes; nothing for the built-in digits."""
    if images.root == DIGITS:
        return {}
    return {path: hashlib.sha256(Path(images.root, path).read_bytes()).hexdigest() for path in paths}
