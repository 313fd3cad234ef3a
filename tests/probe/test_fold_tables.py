"""Folds of a table: each row is tested once, groups together; the command's spread is that of its probes."""

import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from tests.running import refused, transferkit
from tests.similarity.test_transferability import data
from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.probe.fold_tables import fold_tables


def grouped(rows: int = 60) -> Embeddings:
    features, target = data(rows, 5)
    paths = [f"{row:03d}.png" for row in range(rows)]
    groups = [f"g{row // 6}" for row in range(rows)]
    return Embeddings(features, paths, [f"c{n}" for n in target.tolist()], ["train"] * rows, {}, groups)


def test_each_row_is_tested_once_and_groups_stay_together() -> None:
    tested: list[str] = []
    for table in fold_tables(grouped(), 5, seed=0):
        assert table.groups is not None
        inside = {
            split: {g for g, s in zip(table.groups, table.splits, strict=True) if s == split}
            for split in ("train", "test")
        }
        assert not inside["train"] & inside["test"] and len(inside["test"]) == 2
        tested += [path for path, split in zip(table.paths, table.splits, strict=True) if split == "test"]
    assert sorted(tested) == list(grouped().paths)
    with pytest.raises(UserError, match="`folds` is 11, but the table of embeddings has 10 groups"):
        next(fold_tables(grouped(), 11, seed=0))


def test_the_command_reports_the_spread_of_its_probes(tmp_path: Path) -> None:
    with chdir(tmp_path):
        grouped().save("e.parquet")
        done = transferkit("probe", "e.parquet", "--folds", "3", "--fast", "--json")
        assert done.status == 0, done.err
        found = json.loads(done.out)
        values = [json.loads(Path(run, "probe.json").read_text())["linear"]["top1"] for run in found["runs"]]
        of = found["metrics"]["linear/top1"]
        assert of["folds"] == values and Path("probe/0/report.html").is_file()
        np.testing.assert_allclose([of["mean"], of["std"]], [np.mean(values), np.std(values, ddof=1)])
        assert refused(transferkit("probe", "e.parquet", "--folds", "1"), "--folds is 1; give 2 or more")
        assert refused(
            transferkit("probe", "e.parquet", "--folds", "2", "--compare", "p"), "--compare is for one probe"
        )
