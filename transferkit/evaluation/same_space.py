"""Checks that tables of embeddings can be evaluated, and belong to one embedding space."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transferkit import similarity
from transferkit.data.embeddings import Embeddings
from transferkit.embed.embedding_space import UNKNOWN, EmbeddingSpace
from transferkit.errors import UserError, listed


def open_table(path: str | Path, split: str | None = None) -> Embeddings:
    """Read the embeddings of a file: one finite vector per row.

    Args:
        path: Parquet file or directory of shards.
        split: only the rows of this split.

    Raises:
        UserError: the file cannot be read, holds tokens, feature maps or no rows, or an embedding is NaN or infinite.
    """
    table = Embeddings.load(path)
    shape = table.metadata.get("shape") or ()
    if len(shape) > 1:
        raise UserError(f"{path} holds features of shape {tuple(shape)}; embed again without `features`")
    if split is not None:
        rows = [row for row, name in enumerate(table.splits) if name == split]
        if not rows:
            there = ", ".join(sorted({name for name in table.splits if name})) or "no splits"
            raise UserError(f"{path} has no rows of split {split!r}; it has {there}")
        table = table.select(rows)
    if not len(table):
        raise UserError(f"{path} has no rows; embed some images first")
    similarity.finite_rows(table.embedding, str(path), table.paths)
    return table


def check_same_space(first: Embeddings, second: Embeddings, names: tuple[str, str]) -> None:
    """Raise if two tables are not from one embedding space, so that their cosines have no meaning.

    Args:
        first: one table.
        second: another.
        names: their names in the message.

    Raises:
        UserError: their widths differ, or their spaces, as far as both tables record theirs.
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
        f"{one} and {other} differ in {what}; embed both with the same extractor, or compare the two extractors"
    )


def differences(first: Embeddings, second: Embeddings) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which the spaces of two tables differ, with both values; extractors by name if possible."""
    one, other = (EmbeddingSpace.from_metadata(table.metadata) for table in (first, second))
    found = one.differences(other)
    names = [table.metadata.get("extractor") for table in (first, second)]
    weights = found.pop("weights_sha256", None)
    unknown = UNKNOWN in (one.weights_sha256, other.weights_sha256)  # then only the names can be compared
    if (weights or unknown) and names[0] != names[1]:
        return {"extractor": (names[0], names[1]), **found}
    return {"weights": (weights[0][:12], weights[1][:12]), **found} if weights else found


class Shared(NamedTuple):
    """Two tables matched by path."""

    rows: tuple[list[int], list[int]]
    """Rows of the first and of the second table; an image has the same position in both lists."""
    alone: tuple[list[int], list[int]]
    """Rows of either table whose path the other lacks."""


def shared_rows(first: Embeddings, second: Embeddings, names: tuple[str, str]) -> Shared:
    """Match the rows of two tables by path.

    Args:
        first: one table.
        second: another.
        names: their names in a message.

    Raises:
        UserError: a table holds a path twice, or the tables share no path.
    """
    places = [first.row_of, second.row_of]
    for table, place, name in zip((first, second), places, names, strict=True):
        if len(place) < len(table):
            twice = next(path for row, path in enumerate(table.paths) if place[path] != row)
            raise UserError(f"{name} holds {twice!r} more than once; rows are matched by path, so keep one per image")
    both = sorted(places[0].keys() & places[1].keys())
    if not both:
        raise UserError(
            f"{names[0]} and {names[1]} share no path ({first.paths[0]!r}, {second.paths[0]!r}); "
            "embed the same images from the same folder"
        )
    alone = [[row for path, row in rows.items() if path not in other] for rows, other in (places, places[::-1])]
    return Shared(([places[0][path] for path in both], [places[1][path] for path in both]), (alone[0], alone[1]))


def listed_paths(table: Embeddings, rows: Sequence[int]) -> str:
    """Return the paths of the first few rows and how many more there are."""
    return listed([table.paths[row] for row in rows], quote=False)
