import json
import resource
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from transferkit.data.embeddings import Embeddings, to_arrow
from transferkit.errors import UserError

METADATA = {"extractor": "resnet18", "pooling": "avg", "embed_dim": 3, "preprocessing": {"mean": [0.5, 0.5, 0.5]}}


@pytest.fixture
def table() -> Embeddings:
    return Embeddings(
        embedding=torch.randn(4, 3),
        paths=["a/0.jpg", "a/1.jpg", "b/ü ö.png", "c.jpg"],
        labels=["a", "a", "b", None],
        splits=["train", "val", "test", None],
        metadata=METADATA,
    )


def test_round_trip_to_the_bit(table: Embeddings, tmp_path: Path) -> None:
    table.save(tmp_path / "e.parquet")
    again = Embeddings.load(tmp_path / "e.parquet")
    assert torch.equal(again.embedding, table.embedding)
    assert again.embedding.dtype == torch.float32
    assert (again.paths, again.labels, again.splits) == (table.paths, table.labels, table.splits)
    assert again.metadata == METADATA
    assert len(again) == 4
    again.embedding[0] = 0  # memory of its own
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_pandas_opens_it(table: Embeddings, tmp_path: Path) -> None:
    table.save(tmp_path / "e.parquet")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert list(frame) == ["path", "label", "split", "embedding"]
    assert frame["path"].tolist() == table.paths
    assert frame["label"].isna().tolist() == [False, False, False, True]
    np.testing.assert_array_equal(np.stack(frame["embedding"]), table.embedding.numpy())
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert json.loads(schema.metadata[b"transferkit"]) == METADATA


def test_polars_and_duckdb_open_it(table: Embeddings, tmp_path: Path) -> None:
    place = tmp_path / "e.parquet"
    table.save(place)
    frame = pl.read_parquet(place)
    assert frame.columns == ["path", "label", "split", "embedding"]
    assert frame["label"].to_list() == table.labels
    np.testing.assert_array_equal(frame["embedding"].to_numpy(), table.embedding.numpy())
    rows = duckdb.read_parquet(str(place)).select("path, split, embedding").fetchall()
    assert [row[:2] for row in rows] == list(zip(table.paths, table.splits, strict=True))
    np.testing.assert_array_equal(np.float32([row[2] for row in rows]), table.embedding.numpy())


def test_half_precision_leaves_as_float32(table: Embeddings, tmp_path: Path) -> None:
    half = table.embedding.bfloat16().requires_grad_()
    Embeddings(half, table.paths, table.labels, table.splits, {}).save(tmp_path / "e.parquet")
    assert torch.equal(Embeddings.load(tmp_path / "e.parquet").embedding, half.detach().float())


def test_select(table: Embeddings) -> None:
    chosen = table.select([3, 0])
    assert (chosen.paths, chosen.labels, chosen.splits) == (["c.jpg", "a/0.jpg"], [None, "a"], [None, "train"])
    assert torch.equal(chosen.embedding, table.embedding[[3, 0]])
    assert chosen.metadata == METADATA


def test_an_empty_table(table: Embeddings, tmp_path: Path) -> None:
    table.select([]).save(tmp_path / "e.parquet")
    assert Embeddings.load(tmp_path / "e.parquet").embedding.shape == (0, 3)


def test_shards_and_row_groups_are_one_table(table: Embeddings, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number, rows in enumerate(([0, 1], [2, 3])):
        table.select(rows).save(tmp_path / "shards" / f"{number}.parquet")
    assert torch.equal(Embeddings.load(tmp_path / "shards").embedding, table.embedding)
    pq.write_table(to_arrow(table), tmp_path / "groups.parquet", row_group_size=1)
    assert torch.equal(Embeddings.load(tmp_path / "groups.parquet").embedding, table.embedding)


def test_unreadable_files_get_one_line(table: Embeddings, tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    with pytest.raises(UserError, match=r"e\.parquet does not exist; embed images to write it"):
        Embeddings.load(path)
    table.save(path)
    whole = path.read_bytes()
    for content in (whole[:-20], whole[: len(whole) // 2], b"", b"a,b\n1,2\n", b"PAR1" + b"\0" * 100 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a readable Parquet file") as caught:
            Embeddings.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["split", "label"]), "is not an embeddings table .no column label, split"),
        (lambda t: t.replace_schema_metadata({}), "is not an embeddings table .no transferkit metadata"),
        (lambda t: t.replace_schema_metadata({"transferkit": "{"}), "its transferkit metadata is not a JSON object"),
        (lambda t: t.set_column(3, "embedding", t["embedding"].cast(pa.list_(pa.float64()))), "list<.*double"),
        (lambda t: t.set_column(3, "embedding", t["path"]), "embedding is string, a fixed-size list"),
        (
            lambda t: t.set_column(3, "embedding", pa.array([None] * 4, pa.list_(pa.float32(), 3))),
            "4 rows have no embedding",
        ),
    ],
)
def test_foreign_tables_get_one_line(
    table: Embeddings, tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    pq.write_table(change(to_arrow(table)), tmp_path / "e.parquet")
    with pytest.raises(UserError, match=rf"e\.parquet.*{message}"):
        Embeddings.load(tmp_path / "e.parquet")


def test_a_full_disk_leaves_the_old_table(table: Embeddings, tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    table.save(path)
    old = path.read_bytes()
    large = Embeddings(torch.randn(4, 5000), table.paths, table.labels, table.splits, METADATA)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*choose another path or free disk space"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("name", ["t.csv", "t.CSV", "t.npy", "t.feather", "t.parquet.gz"])
def test_another_format_s_suffix_is_refused(name: str, tmp_path: Path) -> None:
    table = Embeddings.from_numpy(np.eye(3))
    with pytest.raises(UserError, match=rf"^`path` .*{name}' does not end in \.parquet.*to_pandas\(\).*to_csv$"):
        table.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    for good in ("t.parquet", "t.pq", "T.PARQUET", "t"):
        table.save(tmp_path / good)
        assert pq.read_table(tmp_path / good)["path"].to_pylist() == ["0", "1", "2"]
