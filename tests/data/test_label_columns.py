"""Tables of embeddings with several labels, or a number, per image."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from transferkit.data.embeddings import Embeddings, read_facts
from transferkit.data.targets import Kind
from transferkit.errors import UserError

CASES: list[tuple[Kind, list[str | None]]] = [
    ("class", ["a|b", None, "b"]),
    ("labels", ["a|b", None, "|"]),
    ("number", ["2.5", None, "-1e-07"]),
]


def table_of(kind: Kind, labels: list[str | None]) -> Embeddings:
    return Embeddings(torch.randn(3, 4), ["1", "2", "3"], labels, ["train"] * 3, {"extractor": "x"}, None, kind)


@pytest.mark.parametrize(("kind", "labels"), CASES)
def test_a_table_is_read_as_it_was_written(kind: Kind, labels: list[str | None], tmp_path: Path) -> None:
    table = table_of(kind, labels)
    table.save(tmp_path / "t.parquet")
    read = Embeddings.load(tmp_path / "t.parquet")
    assert (read.kind, read.labels) == (kind, labels) and torch.equal(read.embedding, table.embedding)
    assert read_facts(tmp_path / "t.parquet").labels == labels
    assert read.select([2]).kind == kind and Embeddings.concat([read]).kind == kind
    assert Embeddings.from_arrow(read.to_arrow()).labels == labels


def test_other_tools_see_lists_and_numbers(tmp_path: Path) -> None:
    for kind, labels in CASES:
        table_of(kind, labels).save(tmp_path / f"{kind}.parquet")
    lists = pq.read_table(tmp_path / "labels.parquet")
    assert lists["label"].to_pylist() == [["a", "b"], None, []]
    assert pd.read_parquet(tmp_path / "number.parquet")["target"].tolist()[::2] == [2.5, -1e-07]
    assert pq.read_schema(tmp_path / "class.parquet").names == ["path", "label", "split", "embedding"]
    assert b"table_format" not in pq.read_schema(tmp_path / "class.parquet").metadata[b"transferkit"]
    assert b'"table_format": 2' in pq.read_schema(tmp_path / "labels.parquet").metadata[b"transferkit"]


def test_a_column_that_somebody_added_is_not_the_target(tmp_path: Path) -> None:
    table_of("class", ["a", None, "b"]).save(tmp_path / "t.parquet")
    added = pq.read_table(tmp_path / "t.parquet").append_column("target", pa.array([1.0, 2.0, 3.0]))
    pq.write_table(added, tmp_path / "t.parquet")
    assert Embeddings.load(tmp_path / "t.parquet").labels == ["a", None, "b"]


def test_tables_of_other_targets_are_not_joined() -> None:
    with pytest.raises(UserError, match="differ in their targets"):
        Embeddings.concat([table_of(*CASES[0]), table_of(*CASES[1])])
