"""The columns that every table of images has: path, label, split and perhaps group of each row."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

TEXTS = ("path", "label", "split")  # the columns of text that every table of embeddings has
GROUP = "group"  # a column that a table has if its images have groups


class Rows(Protocol):
    """A table with a path, a label and a split per row, and perhaps a group."""

    @property
    def paths(self) -> Sequence[str]:
        """Relative paths."""

    @property
    def labels(self) -> Sequence[str | None]:
        """Class names, None where there is no label."""

    @property
    def splits(self) -> Sequence[str | None]:
        """``train``, ``val``, ``test`` or None."""

    @property
    def groups(self) -> Sequence[str | None] | None:
        """Which images belong together, such as those of a patient; None for an image, or a table, without groups."""


class Columns(NamedTuple):
    """Columns path, label, split and group (if any); labels are shared, so a row takes little more than its path."""

    paths: list[str]
    labels: list[str | None]
    splits: list[str | None]
    groups: list[str | None] | None = None


def take(table: Rows, rows: Iterable[int]) -> Columns:
    """Return path, label, split and group of some rows, in the order given."""
    rows = list(rows)
    paths, labels, splits, groups = table.paths, table.labels, table.splits, table.groups
    return Columns(
        [paths[row] for row in rows],
        [labels[row] for row in rows],
        [splits[row] for row in rows],
        None if groups is None else [groups[row] for row in rows],
    )
