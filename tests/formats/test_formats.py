"""What the version before wrote is opened by today's code and gives the same numbers; ``make.py`` wrote the files."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.running import transferkit
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import cached_features, feature_cache, space_of
from transferkit.extractor import Extractor
from transferkit.search.index import open_index
from transferkit.search.query import find

FILES = Path(__file__).parent
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 has brought filters
DECODERS = "rules 2, Pillow 13.0.0, AVIF True"  # which the name of the cache's folder was made of


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    folder = tmp_path_factory.mktemp("formats")
    with tarfile.open(FILES / "resnet18-export.tar.xz") as archive:
        archive.extractall(folder, **SAFELY)
    return Extractor.from_pretrained(folder / "resnet18-export")


@pytest.fixture
def images() -> ImageTable:
    return open_images(FILES / "images")


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Compare embeddings (N, D) to 1e-6 of their length."""
    length = expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(actual / length, expected / length, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_an_export_gives_the_embeddings_of_its_table(name: str, images: ImageTable, resnet18: Extractor) -> None:
    extractor = resnet18 if name == "resnet18" else Extractor.from_pretrained(FILES / "vit-export")
    table = Embeddings.load(FILES / f"{name}.parquet")
    assert (table.paths, table.labels, table.splits) == tuple(map(list, (images.paths, images.labels, images.splits)))
    assert table.metadata["weights_sha256"] == extractor.weights_sha256() and extractor.class_names
    assert_same(extractor.embed([FILES / "images" / path for path in table.paths]), table.embedding)


def test_an_index_finds_what_its_table_says(resnet18: Extractor) -> None:
    index = open_index(FILES / "index")
    index.check_extractor(resnet18)
    table = Embeddings.load(FILES / "resnet18.parquet")
    assert_same(index.embedding(), table.embedding)
    rows = table.embedding / table.embedding.norm(dim=1, keepdim=True)
    cosine = rows @ rows[3]
    hits = find(index, rows[3], 8)
    assert [hit.row for hit in hits] == cosine.argsort(descending=True).tolist()
    assert_same(torch.tensor([hit.cosine for hit in hits]), cosine.sort(descending=True).values)
    assert [hit.label for hit in hits] == [table.labels[hit.row] for hit in hits]


def test_a_cached_feature_is_found(
    resnet18: Extractor, images: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FILES / "cache", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").rglob("*.parquet")
    stamps = list(Embeddings.load(entry).labels)  # of the files as they were then: a checkout changes their times
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "decoders", lambda: DECODERS)
    monkeypatch.setattr(ImageTable, "stamps", lambda table: stamps)
    monkeypatch.setattr(ImageTable, "read", lambda table, row: pytest.fail("an image was decoded"))
    assert feature_cache.entries_folder(space_of(resnet18)) == entry.parent
    found = cached_features(resnet18, images)
    assert_same(found.embedding, Embeddings.load(FILES / "resnet18.parquet").embedding)
    assert list(found.labels) == list(images.labels)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_a_run_goes_on_to_be_measured(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FILES / "runs", "runs")
    before = pd.read_parquet("runs/vit/0/predictions.parquet")
    Path("runs/vit/0/predictions.parquet").unlink()
    done = transferkit(
        verb, str(FILES / "images"), "--ckpt_path", "runs/vit/0/checkpoints/best.ckpt", "--trainer.accelerator", "cpu"
    )
    assert done.status == 0, done.err
    (file,) = Path().rglob("predictions.parquet")
    after = pd.read_parquet(file).set_index("path").loc[before["path"]]
    assert after["prediction"].tolist() == before["prediction"].tolist()
    np.testing.assert_allclose(after["probability"], before["probability"], rtol=1e-6, atol=1e-6)
