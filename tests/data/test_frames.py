"""Embeddings to and from other libraries' tables, and rows chosen, joined and put together."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError

VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
PATHS, LABELS = ["a.png", "b/ü.png", "c.png", "d.png", "e.png"], ["apple", None, "lime", "lime", "apple"]
SPLITS = ["train", "train", "val", None, "test"]
TABLE = Embeddings(torch.from_numpy(VALUES), PATHS, LABELS, SPLITS, {"extractor": "x", "space": "s", "broken": {}})


def same(one: Embeddings, other: Embeddings, metadata: bool = True) -> None:
    assert torch.equal(one.embedding, other.embedding) and one.embedding.dtype == torch.float32
    for name in ("paths", "labels", "splits", *(["metadata"] if metadata else [])):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("name", ["arrow", "pandas", "polars", "duckdb", "datasets"])
def test_there_and_back(name: str) -> None:
    frame = getattr(TABLE, f"to_{name}")()
    kept = name in ("arrow", "pandas")
    for method in (f"from_{name}", "from_frame"):
        back = getattr(Embeddings, method)(frame)
        same(back, TABLE, metadata=kept)
        assert kept or back.metadata in ({}, TABLE.metadata)
    same(getattr(Embeddings, f"from_{name}")(frame, metadata=TABLE.metadata), TABLE)


@pytest.mark.parametrize("name", ["arrow", "pandas", "polars", "duckdb", "datasets"])
def test_groups_go_along(name: str) -> None:
    groups = ["p1", None, "p1", "p2", None]
    table = replace(TABLE, groups=groups)
    assert Embeddings.from_frame(getattr(table, f"to_{name}")()).groups == groups
    assert TABLE.join(pd.DataFrame({"path": PATHS[::-1], "group": groups[::-1]})).groups == groups
    parts = [table.filter(label="lime"), TABLE.filter(split="train")]
    assert Embeddings.concat(parts).groups == [None, None, "p1", "p2"]
    assert Embeddings.concat([TABLE]).groups is None


def test_each_library_reads_the_values() -> None:
    assert np.array_equal(np.stack(TABLE.to_pandas().embedding), VALUES)
    frame = TABLE.to_polars()
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 3) and np.array_equal(
        frame["embedding"].to_numpy(), VALUES
    )
    with duckdb.connect() as connection:
        rows = TABLE.to_duckdb(connection).filter("label = 'lime'").select("path, embedding[1]").fetchall()
    assert rows == [("c.png", VALUES[2, 0]), ("d.png", VALUES[3, 0])]
    assert np.array_equal(np.array(TABLE.to_datasets()["embedding"]), VALUES)
    assert np.array_equal(TABLE.to_numpy(), VALUES) and TABLE.to_arrow()["path"].to_pylist() == PATHS


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"embedding": VALUES.tolist(), "path": PATHS, "label": pd.Categorical(LABELS), "other": 1}),
        pl.DataFrame({"embedding": VALUES.astype(float).tolist(), "path": PATHS, "label": LABELS}).lazy(),
        pa.table({"embedding": pa.array(VALUES.tolist(), pa.large_list(pa.float64())), "path": PATHS, "label": LABELS}),
        {"embedding": VALUES.tolist(), "path": PATHS, "label": LABELS},
    ],
    ids=["pandas", "polars", "arrow", "columns"],
)
def test_tables_made_by_hand_are_read(frame: Any) -> None:
    found = Embeddings.from_frame(frame)
    same(found, Embeddings(TABLE.embedding, PATHS, LABELS, [None] * 5, {}))


def test_numbers_alone_are_enough(tmp_path: Any) -> None:
    table = Embeddings.from_numpy(VALUES.tolist() * 3, labels=[0, 1, 2] * 5)
    assert table.paths[0] == "00" and sorted(table.paths) == table.paths and set(table.labels) == {"0", "1", "2"}
    table.save(tmp_path / "table.parquet")
    same(Embeddings.load(tmp_path / "table.parquet"), table)


def test_filter() -> None:
    assert TABLE.filter(label="lime").paths == ["c.png", "d.png"]
    assert TABLE.filter(label=["lime", None], split=("train", "val")).paths == ["b/ü.png", "c.png"]
    assert TABLE.filter(lambda path, label, split: split is None or "ü" in path).paths == ["b/ü.png", "d.png"]
    mask = VALUES[:, 0] > 0
    assert torch.equal(TABLE.filter(mask).embedding, torch.from_numpy(VALUES[mask]))
    same(TABLE.filter(), TABLE)


def test_join_is_that_of_pandas() -> None:
    other = pd.DataFrame({"path": ["d.png", "x.png", "a.png"], "label": ["kiwi", "x", None], "note": [1, 2, 3]})
    joined = TABLE.join(other)
    oracle = pd.DataFrame({"path": PATHS}).merge(other, on="path")
    assert joined.paths == oracle.path.tolist() == ["a.png", "d.png"]
    assert joined.labels == [None, "kiwi"] and joined.splits == ["train", None]
    assert torch.equal(joined.embedding, TABLE.embedding[[0, 3]]) and joined.metadata == TABLE.metadata
    wide = TABLE.join(TABLE.select([4, 0]))
    assert torch.equal(wide.embedding, torch.from_numpy(np.hstack([VALUES, VALUES])[[0, 4]]))
    assert wide.metadata == {"joined": [TABLE.metadata, TABLE.metadata]}


def test_concat_is_in_path_order() -> None:
    parts = [TABLE.select([4, 1]), TABLE.select([0, 2, 3])]
    same(Embeddings.concat(parts), TABLE)
    other = Embeddings(parts[1].embedding, ["x", "y", "z"], [None] * 3, [None] * 3, {"extractor": "y", "space": "s"})
    assert Embeddings.concat([parts[0], other]).metadata == {"space": "s", "broken": {}}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Embeddings.from_numpy(VALUES[0]), r"array has the shape \(3,\); give \(N, D\)"),
        (lambda: Embeddings.from_numpy([["a"]]), "array cannot be converted to float32"),
        (lambda: Embeddings.from_numpy(VALUES, labels=["a"]), "labels: 1 for 5 rows"),
        (lambda: Embeddings.from_frame(3), "table is of type int; give a table of pandas, polars"),
        (lambda: Embeddings.from_frame({"vector": [[1]]}), "table has no column embedding, only vector"),
        (lambda: Embeddings.from_frame({"embedding": [1.0]}), "column embedding is double; a list of numbers"),
        (lambda: Embeddings.from_frame({"embedding": [[1], [1, 2]]}), "embeddings of 1 to 2 numbers"),
        (lambda: Embeddings.from_frame({"embedding": [[1], None]}), "1 rows have no embedding"),
        (lambda: Embeddings.from_frame({"embedding": [["a"]]}), "numbers were expected"),
        (lambda: Embeddings.from_frame({"embedding": [[1]], "path": [None]}), "row 0 has no path"),
        (
            lambda: Embeddings.from_frame({"embedding": [[1]], "label": [[1]]}),
            "column label is list.*text was expected",
        ),
        (lambda: TABLE.filter([True]), "keep: 1 values for 5 rows"),
        (lambda: TABLE.join({"name": ["a"]}), "other has no column path, only name"),
        (lambda: TABLE.join({"path": ["a.png", "a.png"]}), "other: row 1 has the path 'a.png' again"),
        (lambda: TABLE.join({"path": ["z"]}), "other has none of the 5 paths, such as 'a.png'"),
        (lambda: Embeddings.concat([]), "tables is empty"),
        (lambda: Embeddings.concat([TABLE, TABLE]), "tables have the path 'a.png' twice"),
        (lambda: Embeddings.concat([TABLE, Embeddings.from_numpy(VALUES[:, :2])]), "tables differ in their width"),
        (lambda: Embeddings.concat([TABLE, Embeddings.from_numpy(VALUES, metadata={"space": "t"})]), "in their space"),
    ],
)
def test_what_cannot_be_done_is_told(call: Callable[[], Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        call()


@pytest.mark.parametrize("name", ["pandas", "polars", "duckdb", "datasets"])
def test_a_library_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"{name} is not installed; pip install {name}"):
        getattr(TABLE, f"to_{name}")()
