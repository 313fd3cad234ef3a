"""Nearest rows by cosine, exact, in blocks: `top_k` and the selection that it uses."""

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity.cosine import check_same_width, unit_rows

BLOCK, BLOCK_ON_GPU = 2**24, 2**28
"""Scores in memory at once: 64 MiB of float32 (1 GiB on a GPU), and a few times that while they are ranked."""


def top_k(
    query: Tensor, reference: Tensor, k: int, *, exclude_self: bool = False, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the k reference rows of highest cosine for each query; of equal ones the smaller row comes first.

    >>> top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]]), k=1)
    (tensor([[1.]]), tensor([[1]]))

    Args:
        query: `(Q, D)`.
        reference: `(N, D)`.
        k: number of neighbors, at least 1; clamped to N (N - 1 with `exclude_self`).
        exclude_self: query i is reference row i and is not its own neighbor; needs Q = N.
        normalize: scale the rows first; False if both are `unit_rows` already (saves the copy).

    Returns:
        Cosine `(Q, k)` float32, descending, and reference rows `(Q, k)` int64.

    Raises:
        UserError: the widths differ; k < 1; `exclude_self` and Q is not N; a table is not `(N, D)`, is empty, or has
            NaN or infinity.
    """
    if k < 1:
        raise UserError(f"k = {k}: ask for at least 1 neighbor")
    if exclude_self and len(query) != len(reference):
        raise UserError(f"exclude_self: {len(query)} queries against {len(reference)} rows; give one table twice")
    if normalize:
        same = query is reference
        query = unit_rows(query, "query")
        reference = query if same else unit_rows(reference, "reference")
    check_same_width(query, reference)
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
            scores[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        cosine[rows], index[rows] = select(scores, k)
    return cosine, index


class Scorer:
    """Cosine of a block of queries with all reference rows, written into one buffer that is reused.

    Args:
        reference: unit rows `(N, D)`.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        self.buffer = reference.new_empty(0, len(reference))

    def rows(self, k: int) -> int:
        """Return the number of queries per block when k of N neighbors are kept."""
        block = BLOCK if self.reference.device.type == "cpu" else BLOCK_ON_GPU
        return max(4, block // (len(self.reference) + 4 * k) // 4 * 4)

    def __call__(self, query: Tensor) -> Tensor:
        """Return scores `(B, N)` of unit rows `(B, D)`; valid until the next call."""
        # For a number of queries that is not a multiple of 4, MKL sums in an order that differs between columns, and
        # exact duplicates would differ in the last bit.
        padded = torch.nn.functional.pad(query, (0, 0, 0, -len(query) % 4))  # (4b, D)
        if len(padded) > len(self.buffer):
            self.buffer = self.reference.new_empty(len(padded), len(self.reference))
        torch.mm(padded, self.reference.T, out=self.buffer[: len(padded)])
        return self.buffer[: len(query)]


def select(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest columns of each row; of equal scores the smaller column comes first.

    At least k columns reach the k-th highest of the maxima of groups of adjacent columns, so only the few columns
    that reach it are ranked, not all N.

    >>> select(torch.tensor([[0.1, 0.9, 0.9]]), 2)
    (tensor([[0.9000, 0.9000]]), tensor([[1, 2]]))

    Args:
        scores: `(B, N)` float32 without NaN.
        k: from 1 to N.

    Returns:
        Scores `(B, k)` descending and columns `(B, k)` int64.
    """
    rows, columns = scores.shape
    column = torch.arange(columns, device=scores.device)
    # torch reduces runs of 32 floats five times faster than runs of 16 or 24: only short rows have smaller groups.
    width = next((width for width in (32, 8) if 2 * k * width <= columns), columns)
    groups = columns // width
    grouped = scores[:, : groups * width].view(rows, groups, width)
    best = grouped.amax(2)  # (B, G)
    least = best.topk(min(k, groups), sorted=False).values.amin(1)  # (B,)
    row, group = (best >= least[:, None]).nonzero(as_tuple=True)  # (P,)
    if 2 * len(row) > rows * groups:  # k is large, or nearly all scores are equal
        return from_keys(sort_keys(scores, column).topk(k).values)
    members = grouped[row, group]  # (P, W)
    pair, offset = (members >= least[row, None]).nonzero(as_tuple=True)  # (M,)
    row, member = row[pair], group[pair] * width + offset
    count = row.bincount(minlength=rows)
    position = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]  # within its row
    keys = row.new_full((rows, int(count.max())), torch.iinfo(torch.int64).min)
    keys[row, position] = sort_keys(scores[row, member], member)
    rest = sort_keys(scores[:, groups * width :], column[groups * width :])  # after the last whole group
    return from_keys(torch.cat([keys, rest], 1).topk(k).values)


def sort_keys(score: Tensor, column: Tensor) -> Tensor:
    """Return one int64 per score that sorts by score, then by smaller column, so that there are no ties."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0: -0 becomes 0
    return in_order(bits).long().bitwise_left_shift_(32).bitwise_or_(0xFFFFFFFF - column)


def from_keys(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and columns of `sort_keys`."""
    return in_order((key >> 32).int()).view(torch.float32), 0xFFFFFFFF - (key & 0xFFFFFFFF)


def in_order(bits: Tensor) -> Tensor:
    """Map the bits of float32 to integers in the order of the floats, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
