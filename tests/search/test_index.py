"""The index directory: what is opened, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from transferkit.errors import UserError
from transferkit.search.build import Change
from transferkit.search.index import ImageIndex, open_index


@pytest.mark.parametrize("harm", ["not json", "{}", "[]", '{"format": 2}', "no table", "cut table", "rows"])
def test_a_damaged_index(build: Callable[..., tuple[ImageIndex, Change]], harm: str) -> None:
    folder = build()[0].folder
    table = folder / "embeddings.parquet"
    if harm == "no table":
        table.unlink()
    elif harm == "cut table":
        table.write_bytes(table.read_bytes()[:-100])
    elif harm == "rows":
        record = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(record | {"rows": 3}))
    else:
        (folder / "index.json").write_text(harm)
    with pytest.raises(UserError, match=r"damaged index|update transferkit"):
        open_index(folder)


def test_an_index_without_images(build: Callable[..., tuple[ImageIndex, Change]]) -> None:
    folder = build()[0].folder
    table = pq.read_table(folder / "embeddings.parquet")
    pq.write_table(table.slice(0, 0), folder / "embeddings.parquet")
    record = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(record | {"rows": 0}))
    with pytest.raises(UserError, match="holds no images"):
        open_index(folder)


def test_no_index(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not an index; index images with `out="):
            open_index(folder)
