"""CSV files as people and their spreadsheets write them: the delimiter is found, an encoding other than UTF-8 named."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, dropwhile
from pathlib import Path
from typing import NamedTuple

DELIMITERS = (",", ";", "\t")  # the second is that of spreadsheets in countries with a decimal comma
MAX_CELL = 2**24  # characters; the csv module's own limit of 131,072 also holds for columns that nobody reads
COMMA = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")


class CsvText(NamedTuple):
    """An open CSV file.

    Attributes:
        lines: its lines, from the header on.
        delimiter: what stands between two cells.
    """

    lines: Iterable[str]
    delimiter: str

    def number(self, cell: str | None) -> str | None:
        """Return a cell with a number as Python reads it: its decimal comma, if commas do not part cells, a point."""
        if cell is None or self.delimiter == "," or not COMMA.fullmatch(cell):
            return cell
        return cell.replace(",", ".")


@contextmanager
def open_csv(file: Path) -> Iterator[CsvText]:
    """Open a CSV file in UTF-8, with or without a byte order mark, for ``csv.reader`` and ``csv.DictReader``.

    Blank lines before the header are skipped.

    Raises:
        OSError: it cannot be opened.
        ValueError: within the block: it is not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            csv.field_size_limit(MAX_CELL)
            lines = dropwhile(str.isspace, opened)
            header = next(lines, "")
            yield CsvText(chain([header], lines), delimiter_of(header))
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8; save it as CSV UTF-8") from error


def delimiter_of(header: str) -> str:
    r"""Return what stands between the cells of a first line: a comma, unless it has a path or more cells otherwise.

    >>> delimiter_of("path,label"), delimiter_of("path;label"), delimiter_of('"a"\t"b"')
    (',', ';', '\t')
    """
    cells = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in DELIMITERS}
    return max(DELIMITERS, key=lambda delimiter: ("path" in cells[delimiter], len(cells[delimiter])))


def encoding_for(texts: Iterable[str | None]) -> str:
    """Return the encoding in which spreadsheets read a CSV file of texts: beyond ASCII they need a byte order mark."""
    return "utf-8" if all(text is None or text.isascii() for text in texts) else "utf-8-sig"
