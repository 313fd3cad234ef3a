"""``metrics.csv``: one row per epoch, all logged names; a resumed fit goes on in it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.runtime.files import atomic_path

Row = Mapping[str, Any]


class MetricsTable:
    """The rows of ``metrics.csv``.

    A row has ``epoch``, from 1 (0: before the first step), and the values that were logged at its end; what was
    not measured there stays empty. A validation within an epoch has a row of its own, with ``step``.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def rewind(self, epochs: int, step: int) -> None:
        """Keep the rows of the epochs that have ended, and of validations up to a global step."""
        self.rows = [row for row in read_rows(self.path) if is_before(row, epochs, step)]

    def add(self, row: Row) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        names = dict.fromkeys(name for row in self.rows for name in row)
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, empty cells left out; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    if rows and rows[0]["epoch"] == "0" and "train/loss" in rows[0]:  # of an earlier version, which began with 0
        rows = [{**row, "epoch": str(int(row["epoch"]) + 1)} for row in rows]
    return rows


def is_before(row: Row, epochs: int, step: int) -> bool:
    """Whether a row is of a moment that a fit with so many epochs and steps behind it has seen."""
    return int(row["step"]) <= step if "step" in row else int(row["epoch"]) <= epochs
