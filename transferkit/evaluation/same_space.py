"""Tables of embeddings to evaluate: refused where they cannot be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transferkit import similarity
from transferkit.data.embeddings import Embeddings
from transferkit.embed.embedding_space import UNKNOWN, EmbeddingSpace
from transferkit.errors import UserError, listed


def open_table(path: str | Path, split: str | None = None) -> Embeddings:
    """Read the embeddings of a file, one a row, all of them finite.

    Args:
        path: Parquet file or directory of shards.
        split: only the rows of this split.

    Raises:
        UserError: as :meth:`Embeddings.load`; tokens or feature maps; no rows; NaN or infinity (row and path named).
    """
    table = Embeddings.load(path)
    shape = table.metadata.get("shape") or ()
    if len(shape) > 1:
        raise UserError(f"{path} holds features of shape {tuple(shape)}; embed again without --features")
    if split is not None:
        rows = [row for row, name in enumerate(table.splits) if name == split]
        if not rows:
            there = ", ".join(sorted({name for name in table.splits if name})) or "no splits at all"
            raise UserError(f"{path} has no rows of split {split!r}; it has {there}")
        table = table.select(rows)
    if not len(table):
        raise UserError(f"{path} has no rows; embed some images first")
    similarity.finite_rows(table.embedding, str(path), table.paths)
    return table


def check_alike(first: Embeddings, second: Embeddings, names: tuple[str, str]) -> None:
    """Refuse two tables that are not of one space: their cosines would mean nothing.

    Args:
        first: one table.
        second: another.
        names: what they are called in the message.

    Raises:
        UserError: another width, or another space, as far as both tables know theirs.
    """
    widths = [table.embedding.shape[1] for table in (first, second)]
    found = differences(first, second)
    if widths[0] != widths[1]:
        found = {"width": (widths[0], widths[1]), **found}
    if not found:
        return
    what, values = next(iter(found.items()))
    one, other = (f"{name} ({value})" for name, value in zip(names, values, strict=True))
    raise UserError(
        f"{one} and {other} differ in {what}; embed both with the same extractor, or see transferkit compare"
    )


def differences(first: Embeddings, second: Embeddings) -> dict[str, tuple[Any, Any]]:
    """What the spaces of two tables differ in, with both values; extractors are told by name where they have two."""
    one, other = (EmbeddingSpace.from_metadata(table.metadata) for table in (first, second))
    found = one.differences(other)
    names = [table.metadata.get("extractor") for table in (first, second)]
    weights = found.pop("weights_sha256", None)
    unknown = UNKNOWN in (one.weights_sha256, other.weights_sha256)  # a name, for want of better
    if (weights or unknown) and names[0] != names[1]:
        return {"extractor": (names[0], names[1]), **found}
    return {"weights": (weights[0][:12], weights[1][:12]), **found} if weights else found


class Shared(NamedTuple):
    """Two tables matched by path."""

    rows: tuple[list[int], list[int]]
    """Rows of the first and of the second, an image at the same place in both."""
    alone: tuple[list[int], list[int]]
    """Rows that the other table lacks."""


def shared_rows(first: Embeddings, second: Embeddings, names: tuple[str, str]) -> Shared:
    """Match the rows of two tables by path.

    Args:
        first: one table.
        second: another.
        names: what they are called in a message.

    Raises:
        UserError: a path stands in a table twice, or none in both.
    """
    places = [first.row_of, second.row_of]
    for table, place, name in zip((first, second), places, names, strict=True):
        if len(place) < len(table):
            twice = next(path for row, path in enumerate(table.paths) if place[path] != row)
            raise UserError(f"{name} holds {twice!r} more than once; rows are matched by path, one an image")
    both = sorted(places[0].keys() & places[1].keys())
    if not both:
        raise UserError(
            f"{names[0]} and {names[1]} share no path ({first.paths[0]!r}, {second.paths[0]!r}); "
            "embed the same images from the same folder"
        )
    alone = [[row for path, row in place.items() if path not in other] for place, other in (places, places[::-1])]
    return Shared(([places[0][path] for path in both], [places[1][path] for path in both]), (alone[0], alone[1]))


def some(table: Embeddings, rows: Sequence[int]) -> str:
    """Return the paths of the first few rows and how many more there are."""
    return listed([table.paths[row] for row in rows], quote=False)
