"""Rows of embeddings: unit length, cosine, and labels as class numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transferkit.errors import UserError

Labels = Sequence[str | int | None] | Tensor


def unit_rows(embeddings: Tensor, name: str = "embeddings", in_place: bool = False) -> Tensor:
    """Scale every row to length 1; a row of zeros stays zero, so that its cosine with everything is 0.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])

    Args:
        embeddings: `(N, D)`, any floating dtype.
        name: name of the table in an error.
        in_place: scale a float32 table itself, which saves a copy.

    Returns:
        `(N, D)` float32, a new tensor unless `in_place`.

    Raises:
        UserError: the table is not `(N, D)`, is empty, or has NaN or infinity (the row is named).
    """
    finite_rows(embeddings, name)
    rows = embeddings.detach().to(torch.float32, copy=not in_place)
    # By the largest value first: squares of very small and very large rows would exceed float32's range.
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True)
    rows /= largest.masked_fill_(largest == 0, 1)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(length.masked_fill_(length == 0, 1))


def finite_rows(embeddings: Tensor, name: str = "embeddings", paths: Sequence[str] = ()) -> None:
    """Validate a table of finite float32 numbers.

    Args:
        embeddings: `(N, D)`.
        name: name of the table in an error.
        paths: N names of the rows, if they have any.

    Raises:
        UserError: the table is not `(N, D)`, is empty, or has NaN or infinity (the row is named, from 0).
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise UserError(f"{name}: shape {tuple(embeddings.shape)}; give a table (N, D) that is not empty")
    largest = torch.linalg.vector_norm(embeddings.detach(), ord=torch.inf, dim=1).float()
    bad = (~largest.isfinite()).nonzero().flatten().tolist()
    if bad:
        row = f"row {bad[0]}, {paths[bad[0]]!r}," if paths else f"row {bad[0]}"
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{name}: {row} holds NaN or infinity{more}; leave such rows out or embed again")


def zero_rows(embeddings: Tensor) -> Tensor:
    """Return the rows without a direction (all zeros), for which cosine is 0 by definition.

    >>> zero_rows(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    tensor([0])

    Args:
        embeddings: `(N, D)`.

    Returns:
        `(Z,)` int64, ascending.
    """
    largest: Tensor = torch.linalg.vector_norm(embeddings, ord=torch.inf, dim=1)
    return (largest == 0).nonzero().flatten()


def drawn_rows(count: int, most: int, seed: int) -> Tensor:
    """Draw at most `most` of `count` rows with a seed: `(min(most, count),)` int64, ascending.

    >>> drawn_rows(3, most=5, seed=0)
    tensor([0, 1, 2])
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def check_same_width(first: Tensor, second: Tensor) -> None:
    """Validate that two tables have the same width.

    Raises:
        UserError: the widths differ.
    """
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"embeddings: {first.shape[1]} numbers per row against {second.shape[1]}; "
            "compare embeddings of the same extractor and pooling"
        )


def cosine_matrix(first: Tensor, second: Tensor | None = None) -> Tensor:
    """Return the cosine of every row of one table with every row of another, for a few images.

    Summed in float64, so that a row with itself gives exactly 1. A row of zeros gives 0, also with itself.

    >>> cosine_matrix(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([[1., 0.],
            [0., 1.]])

    Args:
        first: `(N, D)`.
        second: `(M, D)`; `first` if None.

    Returns:
        `(N, M)` float32 in [-1, 1].

    Raises:
        UserError: the widths differ; a table is not `(N, D)`, is empty, or has NaN or infinity.
    """
    unit = unit_rows(first).double()
    other = unit if second is None else unit_rows(second, "second").double()
    check_same_width(unit, other)
    unit = torch.nn.functional.normalize(unit, dim=1)
    other = torch.nn.functional.normalize(other, dim=1)
    return (unit @ other.T).float().clamp_(-1, 1)


def class_codes(*tables: Labels) -> tuple[list[str | int], list[Tensor]]:
    """Number the classes of one or more label columns in one common order.

    >>> class_codes(["b", "a", None], ["c"])
    (['a', 'b', 'c'], [tensor([ 1,  0, -1]), tensor([2])])

    Args:
        tables: label columns; strings or integers, None for a row without label.

    Returns:
        The sorted labels, and for each column `(N,)` int64: the label's index in that list, -1 for None.

    Raises:
        UserError: strings and integers are mixed.
    """
    columns = [table.tolist() if isinstance(table, Tensor) else list(table) for table in tables]
    found = {label for column in columns for label in column if label is not None}
    try:
        names = sorted(found)
    except TypeError:
        raise UserError("labels: strings and integers are mixed; write all labels the same way") from None
    code: dict[str | int | None, int] = {name: number for number, name in enumerate(names)}
    return names, [torch.tensor([code.get(label, -1) for label in column]).long() for column in columns]
