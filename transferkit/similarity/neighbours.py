"""Nearest rows by cosine, exact, in blocks: `top_k` and the selection below it."""

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.cosine import same_width, unit_rows

BLOCK = 2**24
"""Scores kept at once: 64 MiB of float32, and a few times that while they are ranked."""


def top_k(
    query: Tensor, reference: Tensor, k: int, *, exclude_self: bool = False, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """The k reference rows of highest cosine for each query; of equal ones the smaller row comes first.

    Args:
        query: `(Q, D)`.
        reference: `(N, D)`.
        k: neighbours wanted, at least 1; clamped to what there is, N (N - 1 with `exclude_self`).
        exclude_self: query i is reference row i and is not its own neighbour; wants Q = N.
        normalize: scale the rows first; False where both are `unit_rows` already (saves the copy).

    Returns:
        Cosine `(Q, k)` float32, descending, and reference rows `(Q, k)` int64.

    Raises:
        UserError: as `unit_rows`; the widths differ; k < 1; `exclude_self` where Q is not N.
    """
    if k < 1:
        raise UserError(f"k = {k}: ask for at least 1 neighbour")
    if exclude_self and len(query) != len(reference):
        raise UserError(f"exclude_self: {len(query)} queries against {len(reference)} rows; give one table twice")
    if normalize:
        same = query is reference
        query = unit_rows(query, "query")
        reference = query if same else unit_rows(reference, "reference")
    same_width(query, reference)
    columns = len(reference)
    k = min(k, columns - exclude_self)
    cosine = query.new_empty(len(query), k)
    index = query.new_empty((len(query), k), dtype=torch.int64)
    if k == 0:
        return cosine, index
    scorer = Scorer(reference)
    for rows in torch.split(torch.arange(len(query), device=query.device), scorer.rows(k)):
        scores = scorer(query[rows])
        if exclude_self:
            scores[torch.arange(len(rows)), rows] = -torch.inf
        cosine[rows], index[rows] = select(scores, k)
    return cosine, index


class Scorer:
    """Cosine of a block of queries with all reference rows, written into one buffer again and again."""

    def __init__(self, reference: Tensor) -> None:
        """Takes the unit rows `(N, D)` to score against."""
        self.reference = reference
        self.buffer = reference.new_empty(0, len(reference))

    def rows(self, k: int) -> int:
        """Queries a block can hold where k of N neighbours are kept."""
        return max(4, BLOCK // (len(self.reference) + 4 * k) // 4 * 4)

    def __call__(self, query: Tensor) -> Tensor:
        """Scores `(B, N)` of unit rows `(B, D)`; valid until the next call."""
        # MKL sums the rows of a few odd queries in an order that differs from column to column, which
        # would part exact duplicates by one bit; in fours it does not.
        padded = torch.nn.functional.pad(query, (0, 0, 0, -len(query) % 4))  # (4b, D)
        if len(padded) > len(self.buffer):
            self.buffer = self.reference.new_empty(len(padded), len(self.reference))
        torch.mm(padded, self.reference.T, out=self.buffer[: len(padded)])
        return self.buffer[: len(query)]


def select(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest columns of each row, ties to the smaller column.

    Of the maxima of groups of adjacent columns the k-th highest is reached by k columns at least, so only the
    few columns that reach it are ranked, not all N.

    Args:
        scores: `(B, N)` float32 without NaN.
        k: from 1 to N.

    Returns:
        Scores `(B, k)` descending and columns `(B, k)` int64.
    """
    rows, columns = scores.shape
    column = torch.arange(columns, device=scores.device)
    # torch reduces runs of 32 floats five times faster than runs of 16 or 24: only short rows are cut finer.
    width = next((width for width in (32, 8) if 2 * k * width <= columns), columns)
    groups = columns // width
    grouped = scores[:, : groups * width].view(rows, groups, width)
    best = grouped.amax(2)  # (B, G)
    least = best.topk(min(k, groups), sorted=False).values.amin(1)  # (B,)
    row, group = (best >= least[:, None]).nonzero(as_tuple=True)  # (P,)
    if 2 * len(row) > rows * groups:  # k is large, or nearly all scores are equal
        return _unkey(_key(scores, column).topk(k).values)
    members = grouped[row, group]  # (P, W)
    pair, place = (members >= least[row, None]).nonzero(as_tuple=True)  # (M,)
    row, member = row[pair], group[pair] * width + place
    count = row.bincount(minlength=rows)
    place_in_row = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    keys = row.new_full((rows, int(count.max())), torch.iinfo(torch.int64).min)
    keys[row, place_in_row] = _key(scores[row, member], member)
    rest = _key(scores[:, groups * width :], column[groups * width :])  # after the last whole group
    return _unkey(torch.cat([keys, rest], 1).topk(k).values)


def _key(score: Tensor, column: Tensor) -> Tensor:
    """One int64 that sorts by score, then by smaller column: no two are equal, no tie is left to chance."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0: one zero, not two
    return _ordered(bits).long().bitwise_left_shift_(32).bitwise_or_(0xFFFFFFFF - column)


def _unkey(key: Tensor) -> tuple[Tensor, Tensor]:
    return _ordered((key >> 32).int()).view(torch.float32), 0xFFFFFFFF - (key & 0xFFFFFFFF)


def _ordered(bits: Tensor) -> Tensor:
    """Float32 bits as integers in the order of the floats, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
