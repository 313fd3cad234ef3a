"""CSV files as others write them: blank lines first, and long cells in columns that nobody reads."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferkit.data.exclusion import read_exclusion
from transferkit.data.manifest import kind_of, read_manifest
from transferkit.data.sample_weights import weights_by_path
from transferkit.embed.regions.boxes import read_boxes
from transferkit.probe.audit_files import read_review
from transferkit.reports.result_files import ResultFolder
from transferkit.runtime.csv_files import MAX_CELL, from_header

LONG = 140_000  # more than the csv module takes
HEADERS = {
    "manifest": "path,label,target,more",
    "weights": "path,weight,more",
    "exclusion": "path,more",
    "boxes": "path,x1,y1,x2,y2,more",
    "review": "path,decision,suggested,more",
    "results": "path,more",
}
ROWS = {
    "manifest": "a.png,a,0.5",
    "weights": "a.png,0.5",
    "exclusion": "a.png",
    "boxes": "a.png,1,2,5,6",
    "review": "a.png,drop,",
    "results": "a.png",
}
READERS: dict[str, Callable[[Path], Any]] = {
    "manifest": lambda file: (read_manifest(file), kind_of(file)),
    "weights": weights_by_path,
    "exclusion": read_exclusion,
    "boxes": read_boxes,
    "review": read_review,
    "results": lambda file: [row["path"] for row in ResultFolder(file.parent).rows(file.name)],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_blank_lines_and_long_cells_change_nothing(kind: str, tmp_path: Path) -> None:
    found = []
    for begin, cell in (("", "x"), ("\n", "x"), ("\ufeff\r\n  \n", LONG * "x")):
        (tmp_path / "f.csv").write_text(f"{begin}{HEADERS[kind]}\n{ROWS[kind]},{cell}\n")
        found.append(READERS[kind](tmp_path / "f.csv"))
    assert found[0] and found[1:] == found[:1] * 2


def test_a_cell_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f'path\n"{"x" * (MAX_CELL + 1)}')
    with (tmp_path / "f.csv").open(newline="") as file, pytest.raises(csv.Error, match="field limit"):
        list(csv.reader(from_header(file)))
