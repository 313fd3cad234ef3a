"""``compare`` from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import transferkit
from transferkit import similarity
from transferkit.data.embeddings import Embeddings


def table(paths: list[str], width: int = 6, **metadata: Any) -> Embeddings:
    none = [None] * len(paths)
    return Embeddings(torch.randn(len(paths), width), paths, none, none, {"data_fingerprint": "x"} | metadata)


def save(folder: Path, *tables: Embeddings) -> list[str]:
    files = [folder / f"{name}.parquet" for name in "ab"]
    for file, rows in zip(files, tables, strict=True):
        rows.save(file)
    return [str(file) for file in files]


def test_rows_are_matched_by_path(tmp_path: Path) -> None:
    names = [f"{number:02d}.jpg" for number in range(40)]
    first, second = table(names), table([*names[10:], "x.jpg", "y\t.jpg"][::-1], width=4)
    files = save(tmp_path, first, second)
    done = transferkit("compare", *files, "--k", "3", "--json", "true")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    expected = similarity.compare(first.embedding[10:], second.embedding.flip(0)[:30], k=3)
    assert (values.pop("only_in_first"), values.pop("only_in_second")) == (10, 2)
    assert values == pytest.approx(expected)
    assert (
        f"left out: 10 images that are only in {files[0]}: 00.jpg, 01.jpg, 02.jpg, 03.jpg, 04.jpg and 5 more"
        in done.err
    )
    assert f"left out: 2 images that are only in {files[1]}: y\\t.jpg, x.jpg" in done.err
    assert list(tmp_path.glob("*-evaluation")) == []


def test_the_same_table_twice(tmp_path: Path) -> None:
    rows = table(["a", "b", "c", "d", "e"])
    done = transferkit("compare", *save(tmp_path, rows, rows), "-k", "9")
    assert done.status == 0
    assert done.out.count("1.0000") == 5
    told, following = done.err.splitlines()
    assert told == "k = 9 exceeds the number of rows: clamped to 4"
    assert following.startswith("next: transferkit evaluate ")


def test_what_a_reader_has_to_know(tmp_path: Path) -> None:
    rows, equal = table(["a", "b", "c"]), table(["a", "b", "c"], data_fingerprint="y")
    equal.embedding[:] = 0
    done = transferkit("compare", *save(tmp_path, rows, equal), "--rsa_rows", "2", "--json", "true")
    assert done.status == 0 and json.loads(done.out).keys() >= {"rows", "rsa_rows"}
    for line in (
        "data_fingerprint differs",
        "rsa was computed on 2 rows, drawn at random",
        "3 rows of the second are all zeros: a, b, c",
    ):
        assert line in done.err
    assert "cka is undefined" in done.err


def test_bad_input(tmp_path: Path) -> None:
    files = save(tmp_path, table(["a", "b"]), table(["p/a", "p/b"]))
    done = transferkit("compare", *files)
    assert done.status == 2 and "share no path ('a', 'p/a')" in done.err
    done = transferkit("compare", *save(tmp_path, table(["a", "b", "b"]), table(["a", "b"])))
    assert done.status == 2 and "holds 'b' more than once" in done.err
    nan = table(["a", "b"])
    nan.embedding[1, 2] = torch.inf
    done = transferkit("compare", *save(tmp_path, table(["a", "b"]), nan))
    assert done.status == 2 and "b.parquet: row 1, 'b', holds NaN or infinity" in done.err
    done = transferkit("compare", *save(tmp_path, table(["a", "b"]), table(["a", "b"], shape=[4, 6])))
    assert done.status == 2 and "features of shape (4, 6)" in done.err
    done = transferkit("compare", files[0], str(tmp_path / "missing.parquet"))
    assert done.status == 2 and "does not exist" in done.err
