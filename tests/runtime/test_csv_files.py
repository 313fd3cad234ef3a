"""CSV files of spreadsheets: every reader takes their delimiters, decimal commas and byte order marks."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from transferkit.data.exclusion import read_exclusion
from transferkit.data.manifest import read_columns
from transferkit.data.sample_weights import weights_by_path
from transferkit.embed.regions.boxes import read_boxes
from transferkit.errors import UserError
from transferkit.probe.audit_files import read_review
from transferkit.reports.result_files import ResultFolder
from transferkit.runtime.csv_files import MAX_CELL, encoding_for, open_csv

ROWS = [
    {"path": "été/à la mer.png", "label": "abeille; dorée, à", "decision": "drop", "suggested": "guêpe", "number": 0.5},
    {"path": "b.png", "label": "guêpe", "decision": "Keep", "suggested": "", "number": 1.25},
]
READERS: dict[str, tuple[list[str], Callable[[Path], Any]]] = {
    "manifest": (["path", "label"], lambda file: read_columns(file)[:2]),
    "targets": (["path", "target"], lambda file: read_columns(file, kind="number")[:2]),
    "exclude": (["path", "decision"], read_exclusion),
    "sample_weights": (["path", "weight"], weights_by_path),
    "boxes": (["path", "x1", "y1", "x2", "y2", "label"], read_boxes),
    "review": (["path", "decision", "suggested"], read_review),
}


def table(columns: list[str], delimiter: str) -> str:
    """The rows as a spreadsheet writes them: where commas do not part cells, they are in numbers."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(columns)
    for row in ROWS:
        scale = {"x1": 0, "y1": 1, "x2": 20, "y2": 30}
        cells = [row.get(name, float(row["number"]) + scale.get(name, 0)) for name in columns]
        decimal = "." if delimiter == "," else ","
        writer.writerow([str(c).replace(".", decimal) if isinstance(c, float) else c for c in cells])
    return text.getvalue()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("delimiter", [";", "\t", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_reader_takes_what_spreadsheets_write(reader: str, delimiter: str, encoding: str, tmp_path: Path) -> None:
    columns, read = READERS[reader]
    plain, other = tmp_path / "plain.csv", tmp_path / "other.csv"
    plain.write_text(table(columns, ","), encoding="utf-8")
    other.write_text(table(columns, delimiter), encoding=encoding)
    assert read(other) == read(plain) and read(plain)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_encoding_to_save_in(reader: str, tmp_path: Path) -> None:
    columns, read = READERS[reader]
    file = tmp_path / "excel.csv"
    file.write_text(table(columns, ";"), encoding="cp1252")
    with pytest.raises(UserError, match="it is not UTF-8; save it as CSV UTF-8") as caught:
        read(file)
    assert "codec" not in str(caught.value)


def test_a_mark_for_spreadsheets_only_where_they_need_it(tmp_path: Path) -> None:
    assert encoding_for(["a", None]) == "utf-8"
    file = tmp_path / "marked.csv"
    file.write_text("path,label\nété,x\n", encoding=encoding_for(["été", "x"]))
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    assert list(pd.read_csv(file)) == ["path", "label"]


@pytest.mark.parametrize("reader", [*READERS, "results"])
def test_every_reader_takes_blank_lines_first_and_long_cells(reader: str, tmp_path: Path) -> None:
    """The csv module refuses a cell of more than 131,072 characters, also in a column that nobody reads."""
    columns, read = READERS.get(reader, (["path"], lambda file: ResultFolder(file.parent).rows(file.name)))
    found = []
    for begin, cell in (("", "x"), ("\n", "x"), ("\ufeff\r\n  \n", 140_000 * "x")):
        lines = table(columns, ",").splitlines()
        more = [f"{line},{cell if number else 'more'}" for number, line in enumerate(lines)]
        (tmp_path / "f.csv").write_text("\n".join([f"{begin}{more[0]}", *more[1:]]), encoding="utf-8")
        rows = read(tmp_path / "f.csv")
        found.append([row["path"] for row in rows] if reader == "results" else rows)
    assert found[0] and found[1:] == found[:1] * 2


def test_a_cell_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f'path\n"{"x" * (MAX_CELL + 1)}')
    with open_csv(tmp_path / "f.csv") as (lines, _), pytest.raises(csv.Error, match="field limit"):
        list(csv.reader(lines))
