"""metrics.csv: columns that come later, empty cells, and what a resumed fit keeps."""

import csv
from pathlib import Path

import pytest

from transferkit.errors import UserError
from transferkit.training.metrics_table import MetricsTable, read_rows


def content(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def filled(path: Path) -> MetricsTable:
    table = MetricsTable(path)
    table.add({"epoch": 1, "train/loss": 0.5})
    table.add({"epoch": 2, "step": 6, "val/acc": 0.25})
    table.add({"epoch": 2, "train/loss": 0.25, "val/acc": 0.5})
    return table


def test_a_row_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    filled(tmp_path / "metrics.csv")
    assert content(tmp_path / "metrics.csv") == [
        {"epoch": "1", "train/loss": "0.5", "step": "", "val/acc": ""},
        {"epoch": "2", "train/loss": "", "step": "6", "val/acc": "0.25"},
        {"epoch": "2", "train/loss": "0.25", "step": "", "val/acc": "0.5"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(("epochs", "step", "kept"), [(2, 8, 3), (1, 6, 2), (1, 5, 1), (1, 4, 1), (0, 0, 0)])
def test_a_resumed_fit_keeps_the_rows_before_it(tmp_path: Path, epochs: int, step: int, kept: int) -> None:
    path = tmp_path / "metrics.csv"
    before = filled(path).rows
    table = MetricsTable(path)
    table.rewind(epochs, step)
    assert table.rows == [{name: str(value) for name, value in row.items()} for row in before[:kept]]


def test_no_file_has_no_rows_and_an_early_version_counted_from_0(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.csv") == []
    (tmp_path / "metrics.csv").write_text("epoch,train/loss\n0,0.5\n1,0.25\n")
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.csv")] == ["1", "2"]
    (tmp_path / "metrics.csv").write_text("epoch,val/acc,train/loss\n0,0.5,\n1,0.5,0.25\n")  # measured before a step
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.csv")] == ["0", "1"]


@pytest.mark.parametrize(
    "broken",
    [
        b"epoch,val/acc\n1,\xff\n",
        b"epoch,val/acc\nfirst,0.5\n",
        b"epoch,val/acc\n,0.5\n",
        b"epoch,step,val/acc\n1,two,0.5\n",
        b"val/acc\n0.5\n",
        b"epoch,val/acc\n1,high\n",
        b"epoch,val/acc\n1,0.5,0.25\n",
        b'epoch,val/acc\n1,"0.5\n',
    ],
)
def test_a_broken_file_is_refused_in_one_line(broken: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(broken)
    with pytest.raises(UserError, match=r"metrics\.csv is broken \(.+\); mend it, or move it") as caught:
        MetricsTable(tmp_path / "metrics.csv").rewind(1, 1)
    assert "\n" not in str(caught.value)
