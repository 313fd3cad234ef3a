"""``evaluate`` from the command line: what it writes and says, and what it refuses."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.running import transferkit
from transferkit import similarity
from transferkit.data.embeddings import Embeddings

MADE = {"extractor": "resnet18", "weights_sha256": "a" * 64, "pooling": "avg", "preprocessing": {"crop": 224}}
WRITTEN = {"similarity.json", "evaluation.json", "report.html"}
PICTURES = {"class_means.png", "cosine_histogram.png", "map_pca.png"}


def table(rows: int = 60, width: int = 8, **metadata: Any) -> Embeddings:
    codes = torch.arange(rows) % 3
    embedding = torch.eye(3, width)[codes] * 2 + torch.randn(rows, width)
    return Embeddings(
        embedding,
        [f"{row:03d}.jpg" for row in range(rows)],
        [("ant", "bee", "$cat")[code] for code in codes],
        ["val" if row % 4 == 0 else "train" for row in range(rows)],
        MADE | {"embed_dim": width} | metadata,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    table(shape=[8]).save(tmp_path / "photos.parquet")
    return tmp_path / "photos.parquet"


def labels_of(rows: Embeddings, *labels: str | None) -> Embeddings:
    return Embeddings(rows.embedding, rows.paths, list(labels), rows.splits, rows.metadata)


def test_writes_figures_and_pictures_beside_the_file(file: Path) -> None:
    done = transferkit("evaluate", str(file))
    assert done.status == 0, done.err
    folder = file.with_name("photos-evaluation")
    assert done.err.splitlines()[-2].endswith("report.html")  # what to look at comes last
    assert {path.name for path in folder.iterdir()} == PICTURES | WRITTEN | {"per_class.csv"}
    rows = Embeddings.load(file)
    expected = similarity.evaluate(rows.embedding, rows.labels)
    assert json.loads((folder / "similarity.json").read_text()) == expected.overall
    with (folder / "per_class.csv").open(newline="") as lines:
        found = {line["class"]: line for line in csv.DictReader(lines)}
    assert {name: {k: float(v) for k, v in line.items() if k != "class"} for name, line in found.items()} == (
        expected.per_class
    )
    for name in PICTURES:
        Image.open(folder / name).verify()
    for name, value in expected.overall.items():
        (line,) = (line for line in done.out.splitlines() if f" {name} " in line)
        assert (f" {value} " if isinstance(value, int) else f"{value:.4f}") in line
    assert "similarity.json" in done.err


def test_json_and_options(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "there" / "already"
    out.mkdir(parents=True)
    arguments = [
        "--out",
        str(out),
        "--ks",
        "[2, 99]",
        "--class_sized",
        "false",
        "--pictures",
        "false",
        "--json",
        "true",
    ]
    done = transferkit("evaluate", str(file), *arguments)
    assert done.status == 0
    values = json.loads(done.out)
    assert values == json.loads((out / "similarity.json").read_text())
    assert {"hit_rate@2", "hit_rate@99"} <= values.keys() and "map_at_r" not in values
    assert values["k_clamped"] == 59 and "K = 99 exceeds the number of rows: clamped to 59" in done.err
    assert {path.name for path in out.iterdir()} == WRITTEN | {"per_class.csv"}


def test_one_split_and_one_split_against_another(file: Path) -> None:
    rows = Embeddings.load(file)
    val, train = (rows.select([i for i, name in enumerate(rows.splits) if name == split]) for split in ("val", "train"))
    quiet = ("--pictures", "false", "--json", "true")
    alone = transferkit("evaluate", str(file), "--split", "val", *quiet)
    assert json.loads(alone.out) == similarity.evaluate(val.embedding, val.labels).overall
    against = transferkit("evaluate", str(file), "--split", "val", "--reference_split", "train", *quiet)
    expected = similarity.evaluate(val.embedding, val.labels, train.embedding, train.labels).overall
    assert json.loads(against.out) == expected
    assert "find themselves" not in against.err
    done = transferkit("evaluate", str(file), "--split", "test")
    assert done.status == 2 and "no rows of split 'test'; it has train, val" in done.err


def test_reference_file(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    table(9).save(other)
    done = transferkit("evaluate", str(file), "--reference", str(other), "--json", "true")
    assert done.status == 0 and json.loads(done.out)["reference_rows"] == 9
    assert "K = 10 exceeds the number of rows: clamped to 9" in done.err
    assert {path.name for path in file.with_name("photos-evaluation").glob("*.png")} == PICTURES
    done = transferkit("evaluate", str(file), "--reference", str(file), "--out", str(tmp_path / "itself"))
    assert "60 rows are also in the reference and find themselves: 000.jpg" in done.err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"extractor": "vit", "weights_sha256": "b" * 64},
            r"photos.parquet \(resnet18\) and .*o.parquet \(vit\).*extra",
        ),
        ({"weights_sha256": "b" * 64}, r"photos.parquet \(aaaaaaaaaaaa\) and .*\(bbbbbbbbbbbb\) differ in weights"),
        ({"extractor": "vit", "weights_sha256": None}, r"photos.parquet \(resnet18\) and .*o.parquet \(vit\)"),
        ({"pooling": "logits"}, r"photos.parquet \(avg\) and .*o.parquet \(logits\) differ in pooling"),
        ({"layer": "layer3"}, r"photos.parquet \(None\) and .*o.parquet \(layer3\) differ in layer"),
        ({"preprocessing": {"crop": 32}}, r"differ in preprocessing"),
        ({"width": 5}, r"photos.parquet \(8\) and .*o.parquet \(5\) differ in width"),
    ],
)
def test_files_of_different_spaces_are_refused(file: Path, tmp_path: Path, other: Any, message: str) -> None:
    table(**other).save(tmp_path / "o.parquet")
    done = transferkit("evaluate", str(file), "--reference", str(tmp_path / "o.parquet"))
    assert done.status == 2 and done.out == ""
    assert re.search(message, done.err), done.err
    assert not file.with_name("photos-evaluation").exists()


def test_without_labels(tmp_path: Path) -> None:
    labels_of(table(), *[None] * 60).save(tmp_path / "bare.parquet")
    done = transferkit("evaluate", str(tmp_path / "bare.parquet"), "--json", "true")
    assert done.status == 0 and json.loads(done.out).keys() == {"rows", "zero_norm_rows", "uniformity"}
    assert "no labels" in done.err
    written = {path.name for path in (tmp_path / "bare-evaluation").iterdir()}
    assert written == WRITTEN | {"cosine_histogram.png", "map_pca.png"}
    table().save(tmp_path / "photos.parquet")
    sides = str(tmp_path / "photos.parquet"), "--reference", str(tmp_path / "bare.parquet")
    done = transferkit("evaluate", *sides, "--json", "true")
    assert "the reference has no labels" in done.err and "precision_at_1" not in json.loads(done.out)


def test_zero_rows_are_named_and_nan_is_refused_by_row_and_path(file: Path) -> None:
    rows = table()
    rows.embedding[[7, 20]] = 0
    rows.save(file)
    done = transferkit("evaluate", str(file), "--json", "true")
    assert done.status == 0 and json.loads(done.out)["zero_norm_rows"] == 2
    assert "2 rows are all zeros, their cosine with any row is 0: 007.jpg, 020.jpg" in done.err
    rows.embedding[[20, 33], 1] = torch.nan
    rows.save(file)
    done = transferkit("evaluate", str(file))
    assert done.status == 2
    assert "photos.parquet: row 20, '020.jpg', holds NaN or infinity (and 1 more)" in done.err


def test_what_is_no_table_of_embeddings(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    bad = tmp_path / "bad.parquet"
    for content in (whole[:-30], b"", b"not parquet"):
        bad.write_bytes(content)
        done = transferkit("evaluate", str(bad))
        assert done.status == 2 and "is not a readable Parquet file" in done.err and len(done.err.splitlines()) == 1
    pq.write_table(pa.table({"a": [1]}), bad)
    assert "is not an embeddings table" in transferkit("evaluate", str(bad)).err
    table(shape=[197, 4]).save(bad)
    assert "holds features of shape (197, 4); embed again without features" in transferkit("evaluate", str(bad)).err
    table().select([]).save(bad)
    assert "has no rows" in transferkit("evaluate", str(bad)).err
    assert {path.name for path in tmp_path.iterdir()} == {"bad.parquet", "photos.parquet"}


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("make", ["one class", "own classes", "zeros", "equal", "some without label"])
def test_degenerate_tables(tmp_path: Path, rows: int, make: str) -> None:
    small = table(rows)
    labels: list[str | None] = ["a"] * rows if make == "one class" else [str(row) for row in range(rows)]
    if make in ("zeros", "equal"):
        small.embedding[:] = make == "equal"
    if make == "some without label":
        labels[0] = None
    labels_of(small, *labels).save(tmp_path / "e.parquet")
    done = transferkit("evaluate", str(tmp_path / "e.parquet"), "--json", "true")
    assert done.status == 0, done.err
    assert json.loads(done.out)["rows"] == rows
    assert {"cosine_histogram.png", "map_pca.png"} <= {path.name for path in (tmp_path / "e-evaluation").iterdir()}


def test_tsne_and_a_place_that_cannot_be_written(file: Path, tmp_path: Path) -> None:
    done = transferkit("evaluate", str(file), "--tsne", "true", "--out", str(tmp_path / "out"))
    assert done.status == 0 and (tmp_path / "out" / "map_tsne.png").is_file()
    done = transferkit("evaluate", str(file), "--out", str(file))
    assert done.status == 2 and "cannot write" in done.err
    assert len(Embeddings.load(file)) == 60
