"""The columns that every table of images has: path, label and split of each row."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol


class Rows(Protocol):
    """A table with a path, a label and a split per row."""

    @property
    def paths(self) -> Sequence[str]:
        """Relative paths."""

    @property
    def labels(self) -> Sequence[str | None]:
        """Class names, None where there is no label."""

    @property
    def splits(self) -> Sequence[str | None]:
        """``train``, ``val``, ``test`` or None."""


class Columns(NamedTuple):
    """Columns path, label and split; equal labels are one object, so a row takes little more memory than its path."""

    paths: list[str]
    labels: list[str | None]
    splits: list[str | None]


def take(table: Rows, rows: Iterable[int]) -> Columns:
    """Return path, label and split of some rows, in the order given."""
    rows = list(rows)
    paths, labels, splits = table.paths, table.labels, table.splits
    return Columns([paths[row] for row in rows], [labels[row] for row in rows], [splits[row] for row in rows])
