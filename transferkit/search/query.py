"""Querying an index: the images nearest to a direction."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.search import faiss_index
from transferkit.search.index import ImageIndex
from transferkit.similarity import top_k, unit_rows


class Hit(NamedTuple):
    """An image that was found: rank from 1, row in the index, cosine in [-1, 1], path relative to the root, label."""

    rank: int
    row: int
    cosine: float
    path: str
    label: str | None


def find(index: ImageIndex, query: Tensor, k: int, exact: bool = False, leave_out: int | None = None) -> list[Hit]:
    """Find the k images nearest to a direction by cosine; equal ones are in path order.

    Args:
        index: the index.
        query: float32 (D,), a unit row, such as :func:`mean_direction` returns.
        k: number of images; fewer are returned if the index has fewer.
        exact: compare with every image, for any kind of index.
        leave_out: row that is left out, such as the query's own.

    Raises:
        UserError: ``k`` is below 1, or ``index.faiss`` cannot be read.
    """
    if k < 1:
        raise UserError(f"`k` is {k}; give 1 or more")
    wanted = min(k, len(index)) + (leave_out is not None)
    if exact or index.kind == "exact":
        cosine, rows = (part[0] for part in top_k(query[None], index.unit, wanted, normalize=False))
    else:
        ann_index = index.faiss
        row_of_place = torch.full((ann_index.ntotal,), -1)
        row_of_place[index.places] = torch.arange(len(index))
        proposed = faiss_index.nearest(ann_index, query, row_of_place, faiss_index.candidates(wanted))
        unit = unit_rows(index.embedding(proposed)) if len(proposed) else query[None]
        cosine, rows = faiss_index.rerank(query, proposed, unit, wanted)
    pairs = [(row, c) for row, c in zip(rows.tolist(), cosine.clamp(-1, 1).tolist(), strict=True) if row != leave_out]
    images = index.images
    return [Hit(rank, row, c, images.paths[row], images.labels[row]) for rank, (row, c) in enumerate(pairs[:k], 1)]


def mean_direction(embeddings: Tensor) -> Tensor:
    """Return the direction of several images: the mean of their unit rows, at unit length.

    Args:
        embeddings: (N, D).

    Returns:
        float32 (D,).

    Raises:
        UserError: the mean is zero (all zeros, or opposite rows).
    """
    mean = unit_rows(unit_rows(embeddings, "query").mean(0, keepdim=True), "query")[0]
    if not mean.any():
        raise UserError("the query's embedding is all zeros, so its cosine with every image is 0; give another query")
    return mean


def find_row(index: ImageIndex, name: str) -> int:
    """Return the row of an indexed image, given its path (as indexed, or on disk) or its number from 0.

    Raises:
        UserError: the index has no such image.
    """
    inside = Path(name).absolute()
    root = Path(index.images.root)
    for candidate in (name, inside.relative_to(root).as_posix() if inside.is_relative_to(root) else name):
        if candidate in index.images.row_of:
            return index.images.row_of[candidate]
    if name.isdecimal() and int(name) < len(index):
        return int(name)
    raise UserError(f"`row` is {name!r}; {index.folder} has rows 0 to {len(index) - 1}, and no image with that path")
