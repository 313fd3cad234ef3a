"""CSV files from others: blank lines before the header are skipped, and a cell may be long."""

import csv
import itertools
from collections.abc import Iterator
from typing import TextIO

MAX_CELL = 2**24
"""Characters of a cell; the csv module's own limit of 131,072 also holds for columns that nobody reads."""


def from_header(file: TextIO) -> Iterator[str]:
    """Return the lines of a CSV file for the csv module, from the first on that is not blank."""
    csv.field_size_limit(MAX_CELL)
    return itertools.dropwhile(str.isspace, file)
