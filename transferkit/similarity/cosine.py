"""Rows of embeddings: unit length, cosine, and labels as class numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transferkit.errors import UserError

Labels = Sequence[str | int | None] | Tensor


def unit_rows(embeddings: Tensor, name: str = "embeddings") -> Tensor:
    """Scales every row to length 1; a row of zeros stays zero, so that its cosine with everything is 0.

    Args:
        embeddings: `(N, D)`, any floating dtype.
        name: what the table is called in an error.

    Returns:
        `(N, D)` float32, a new tensor.

    Raises:
        UserError: not `(N, D)`, empty, or a row holds NaN or infinity (the row is named).
    """
    finite_rows(embeddings, name)
    rows = embeddings.detach().to(torch.float32, copy=True)
    # By the largest value first: squares of very small and very large rows would leave float32's range.
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True)
    rows /= largest.masked_fill_(largest == 0, 1)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(length.masked_fill_(length == 0, 1))


def finite_rows(embeddings: Tensor, name: str = "embeddings", paths: Sequence[str] = ()) -> None:
    """Refuses what is not a table of finite float32 numbers.

    Args:
        embeddings: `(N, D)`.
        name: what the table is called in an error.
        paths: N names of the rows, where they have some.

    Raises:
        UserError: not `(N, D)`, empty, or a row holds NaN or infinity (the row is named, from 0).
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
    """Numbers of the rows without a direction (all zeros), for which cosine is 0 by definition.

    Args:
        embeddings: `(N, D)`.

    Returns:
        `(Z,)` int64, ascending.
    """
    largest: Tensor = torch.linalg.vector_norm(embeddings, ord=torch.inf, dim=1)
    return (largest == 0).nonzero().flatten()


def drawn_rows(count: int, most: int, seed: int) -> Tensor:
    """Numbers of at most `most` of `count` rows, drawn with a seed, `(min(most, count),)` int64, ascending."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def same_width(first: Tensor, second: Tensor) -> None:
    """Refuses two tables that have rows of different length.

    Raises:
        UserError: the widths differ.
    """
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"embeddings: {first.shape[1]} numbers a row against {second.shape[1]}; "
            "compare embeddings of the same extractor and pooling"
        )


def cosine_matrix(first: Tensor, second: Tensor | None = None) -> Tensor:
    """Cosine of every row of one table with every row of another, for a few images.

    Summed in float64, so that a row with itself gives exactly 1. A row of zeros gives 0, with itself too.

    Args:
        first: `(N, D)`.
        second: `(M, D)`; `first` itself where None.

    Returns:
        `(N, M)` float32 in [-1, 1].

    Raises:
        UserError: as `unit_rows`; or the widths differ.
    """
    unit = unit_rows(first).double()
    other = unit if second is None else unit_rows(second, "second").double()
    same_width(unit, other)
    unit = torch.nn.functional.normalize(unit, dim=1)
    other = torch.nn.functional.normalize(other, dim=1)
    return (unit @ other.T).float().clamp_(-1, 1)


def class_codes(*tables: Labels) -> tuple[list[str | int], list[Tensor]]:
    """Numbers the classes of one or more label columns in one common order.

    Args:
        tables: label columns; strings or integers, None for a row without label.

    Returns:
        The sorted labels, and for each column `(N,)` int64: the label's place in that list, -1 for None.

    Raises:
        UserError: strings and integers are mixed.
    """
    columns = [table.tolist() if isinstance(table, Tensor) else list(table) for table in tables]
    found = {label for column in columns for label in column if label is not None}
    try:
        names = sorted(found)
    except TypeError:
        raise UserError("labels: strings and integers are mixed; write all labels the same way") from None
    place: dict[str | int | None, int] = {name: number for number, name in enumerate(names)}
    return names, [torch.tensor([place.get(label, -1) for label in column]).long() for column in columns]
