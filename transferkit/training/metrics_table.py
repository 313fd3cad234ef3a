"""``metrics.csv``: one row per epoch with all logged values; a resumed fit continues it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.errors import UserError, first_line
from transferkit.runtime.files import atomic_path

Row = Mapping[str, Any]


class MetricsTable:
    """The rows of ``metrics.csv``.

    A row has ``epoch``, from 1 (0 before the first step), and the values that were logged at its end; other cells are
    empty. A validation within an epoch has a row of its own, with ``step``.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def rewind(self, epochs: int, step: int) -> None:
        """Keep only the rows of the epochs that have ended, and of validations up to a global step."""
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
    """Read the rows of a file without empty cells; no rows if the file does not exist.

    Raises:
        UserError: it cannot be read, a cell is not a number, or the epoch or step of a row is not a whole one.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Row] = [
                {name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file, strict=True)
            ]
        for row in rows:
            is_before(row, int(row["epoch"]), 0)
            list(map(float, row.values()))
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        remedy = "mend it, or move it to go on without its rows"
        raise UserError(f"{path} is broken ({first_line(error)}); {remedy}") from error
    if rows and rows[0]["epoch"] == "0" and "train/loss" in rows[0]:  # an earlier version counted from 0
        rows = [{**row, "epoch": str(int(row["epoch"]) + 1)} for row in rows]
    return rows


def is_before(row: Row, epochs: int, step: int) -> bool:
    """Return whether a row was written before a fit had completed the given epochs and steps."""
    return int(row["step"]) <= step if "step" in row else int(row["epoch"]) <= epochs
