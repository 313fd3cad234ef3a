"""`index`, `search` and `duplicates` from the command line, on an extractor saved to disk."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.extractor.examples import transformer
from tests.extractor.test_quantization import with_nncf
from tests.running import Done, transferkit
from transferkit.data.image_table import open_images
from transferkit.embed import embed
from transferkit.extractor import Extractor


@pytest.fixture(scope="session")
def extractors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two different extractors, saved: one and other."""
    folder = tmp_path_factory.mktemp("extractors")
    transformer("vit", "cls").save_pretrained(folder / "one")
    transformer("vit", "mean").save_pretrained(folder / "other")
    return folder


@pytest.fixture
def here(photo_folder: Path, extractors: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/ and an index of them, as working directory."""
    monkeypatch.chdir(photo_folder.parent)
    done = transferkit("index", "photos", "--extractor", str(extractors / "one"))
    assert done.status == 0, done.err
    assert "written: index" in done.err and "next: transferkit search index" in done.err
    return photo_folder.parent


def found(done: Done) -> list[str]:
    assert done.status == 0, done.err
    return [result["path"] for result in json.loads(done.out)["results"]]


def refused(*arguments: str) -> str:
    done = transferkit(*arguments)
    assert done.status == 2 and done.out == "" and done.err.count("\n") == 1, done
    return done.err


def test_search_by_image_images_and_row(here: Path) -> None:
    table = transferkit("search", "index", "-k", "3", "photos/val/limes/2.jpg")  # options may come first
    assert table.status == 0 and "val/limes/2.jpg" in table.out and "cosine" in table.out and "1.0000" in table.out
    assert found(transferkit("search", "index", "photos/val/limes/2.jpg", "-k", "1", "--json")) == ["val/limes/2.jpg"]
    by_row = found(transferkit("search", "index", "--row", "val/limes/2.jpg", "-k", "5", "--json"))
    by_image = found(transferkit("search", "index", "photos/val/limes/2.jpg", "-k", "6", "--json"))
    assert by_row == by_image[1:]  # a row is not its own neighbour
    number = open_images("photos").paths.index("val/limes/2.jpg")
    assert found(transferkit("search", "index", "--row", str(number), "-k", "5", "--json")) == by_row
    several = transferkit("search", "index", "photos/val/limes/1.png", "photos/val/limes/2.jpg", "--json")
    assert len(found(several)) == 10
    first = json.loads(several.out)["results"][0]
    assert set(first) == {"rank", "row", "cosine", "path", "label"} and first["label"] in ("apples", "limes")


def test_html(here: Path) -> None:
    done = transferkit("search", "index", "photos/val/limes/2.jpg", "--html", "page.html")
    assert done.status == 0 and "written: page.html" in done.err
    text = Path("page.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 11 and "val/<wbr>limes/<wbr>2.jpg" in text
    assert transferkit("search", "index", "--row", "0", "--html", "page.html").status == 0
    Path("photos/val/limes/2.jpg").unlink()
    assert transferkit("search", "index", "--row", "0", "-k", "23", "--html", "page.html").status == 0
    assert "no picture: no such file" in Path("page.html").read_text()


def test_k_is_clamped_and_said(here: Path) -> None:
    done = transferkit("search", "index", "photos/val/limes/2.jpg", "-k", "99", "--json")
    assert len(found(done)) == 24 and "-k is 99, but the index has 24 images to find; showing 24" in done.err
    assert "k is 0; give 1 or more" in refused("search", "index", "photos/val/limes/2.jpg", "-k", "0")


def test_bad_queries(here: Path, extractors: Path) -> None:
    Path("bad.jpg").write_bytes(b"no picture")
    assert "bad.jpg cannot be read as an image" in refused("search", "index", "bad.jpg")
    assert "gone.jpg cannot be read as an image" in refused("search", "index", "gone.jpg")
    assert "photos is not an index" in refused("search", "photos", "photos/val/limes/2.jpg")
    assert "give images to search for, or --row" in refused("search", "index")
    assert "give images to search for, or --row" in refused("search", "index", "bad.jpg", "--row", "1")
    assert "rows 0 to 23" in refused("search", "index", "--row", "24")


def test_the_index_is_kept_up_to_date(here: Path, extractors: Path) -> None:
    Path("photos/val/limes/2.jpg").unlink()
    done = transferkit("index", "photos", "--json")  # with the extractor it was built with
    counts = json.loads(done.out)
    assert [counts[name] for name in ("images", "added", "removed", "refreshed")] == [23, 0, 1, 0]
    other = ["--extractor", str(extractors / "other")]
    line = refused("index", "photos", *other)
    assert "has other pooling; use the former, or index the images again with --overwrite" in line
    assert json.loads(transferkit("index", "photos", *other, "--overwrite", "--json").out)["added"] == 23
    assert "holds something else than an index" in refused("index", "photos", *other, "--out", "photos/train")


def test_an_extractor_that_has_changed(here: Path, extractors: Path) -> None:
    Extractor.from_pretrained(extractors / "one").save_pretrained(here / "mine")
    assert transferkit("index", "photos", "--extractor", "mine", "--out", "second").status == 0
    mine = Extractor.from_pretrained(here / "mine")
    torch.nn.init.normal_(mine.backbone.model.layernorm.bias)  # type: ignore[arg-type, union-attr]
    mine.save_pretrained(here / "mine", overwrite=True)
    assert "has other weights" in refused("search", "second", "photos/val/limes/2.jpg")
    assert found(transferkit("search", "second", "--row", "0", "--json"))  # needs no extractor


def test_an_extractor_that_has_moved(here: Path, extractors: Path) -> None:
    Extractor.from_pretrained(extractors / "one").save_pretrained(here / "mine")
    assert transferkit("index", "photos", "--extractor", "mine", "--out", "second").status == 0
    (here / "mine").rename(here / "elsewhere")
    gone = f"second was made with the extractor {here / 'mine'}, which no longer exists; restore it, or index"
    assert gone in refused("search", "second", "photos/val/limes/2.jpg")
    assert gone in refused("index", "photos", "--out", "second")
    named = ["--extractor", "elsewhere", "--pooling", "cls"]
    done = transferkit("index", "photos", *named, "--out", "second", "--json")
    assert done.status == 0 and [json.loads(done.out)[name] for name in ("images", "added")] == [24, 0], done.err
    assert found(transferkit("search", "second", "photos/val/limes/2.jpg", "-k", "1", "--json"))


def test_weights_that_have_moved(here: Path) -> None:
    record = json.loads(Path("index/index.json").read_text())
    record["extractor"] |= {"source": "resnet18", "weights": str(here / "gone.safetensors")}
    Path("index/index.json").write_text(json.dumps(record))
    line = refused("search", "index", "photos/val/limes/2.jpg")
    assert f"made with the weights file {here / 'gone.safetensors'}, which no longer exists" in line
    assert 'extractor="resnet18", weights="NEW_PATH", pooling="cls", out="index"' in line


def test_faiss(here: Path, extractors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    one = ["--extractor", str(extractors / "one")]
    done = transferkit("index", "photos", "--index", "HNSW8")
    assert done.status == 0 and "recall@10 against exact search on 24 sampled images at efSearch" in done.err
    approximate = found(transferkit("search", "index", "photos/val/limes/2.jpg", "--json"))
    assert approximate == found(transferkit("search", "index", "photos/val/limes/2.jpg", "--exact", "--json"))
    assert "--index auto chose exact for 24 images" in transferkit("index", "photos", "--index", "auto").err
    assert "faiss cannot make an index 'HNSV'" in refused("index", "photos", "--index", "HNSV")

    transferkit("index", "photos", "--index", "Flat")
    Path("index/index.faiss").write_bytes(b"something else")
    assert "does not have the SHA-256 in index.json" in refused("search", "index", "photos/val/limes/2.jpg")
    assert found(transferkit("search", "index", "photos/val/limes/2.jpg", "--exact", "--json")) == approximate
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'transferkit[faiss]'" in refused("search", "index", "photos/val/limes/2.jpg")
    assert (
        "pip install 'transferkit[faiss]'"
        in transferkit("index", "photos", "--index", "auto", "--out", "new", *one).err
    )
    assert "pip install 'transferkit[faiss]'" in refused("index", "photos", "--index", "Flat", "--out", "newer", *one)


def test_duplicates(here: Path, extractors: Path) -> None:
    one = ["--extractor", str(extractors / "one")]
    copy = Path("photos/val/apples/copy.jpg")
    copy.write_bytes(Path("photos/train/apples/0.jpg").read_bytes())
    done = transferkit("duplicates", "photos", *one, "--threshold", "1", "--json")
    assert done.status == 2
    report = json.loads(done.out)
    paths = [[member["path"] for member in group] for group in report["groups"]]
    assert paths == [["train/apples/0.jpg", "val/apples/copy.jpg"]]
    assert len({member["sha256"] for member in report["groups"][0]}) == 1
    (leak,) = report["leaks"]
    assert (leak["a"]["split"], leak["b"]["split"], report["leak_count"]) == ("train", "val", 1)
    table = transferkit("duplicates", "photos", *one, "--threshold", "1")
    assert table.status == 2 and "same file as" in table.out and "Leakage: 1 pairs" in table.out
    assert "1 pairs of 25 images with cosine 1 or more\n" in table.out
    (pair,) = report["pairs"]
    assert report["pair_count"] == 1 and pair["cosine"] == pytest.approx(1, abs=1e-5)
    assert (pair["a"]["label"], pair["b"]["path"]) == ("apples", "val/apples/copy.jpg")

    usual = json.loads(transferkit("duplicates", "photos", *one, "--json").out)
    cosines = [pair["cosine"] for pair in usual["pairs"]]
    assert 0.9 < usual["threshold"] < 1 and cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(1, abs=1e-5) and cosines[-1] >= usual["threshold"] - 1e-6

    embed("photos", Extractor.from_pretrained(extractors / "one")).save("photos.parquet")
    from_table = transferkit("duplicates", "photos.parquet", "--threshold", "1", "--json")
    assert from_table.status == 2
    assert [[m["path"] for m in group] for group in json.loads(from_table.out)["groups"]] == paths

    copy.unlink()
    done = transferkit("duplicates", "photos", *one, "--threshold", "1")
    assert done.status == 0 and "no two of 24 images have a cosine of 1 or more" in done.out
    assert "--threshold is 0" in refused("duplicates", "photos", *one, "--threshold", "0")


@pytest.mark.slow
def test_an_index_is_searched_with_engine_and_precision_that_it_was_built_with(here: Path, extractors: Path) -> None:
    given = ("--extractor", str(extractors / "one"), "--engine", "openvino", "--precision", "bf16", "--out", "low")
    assert transferkit("index", "photos", *given).status == 0
    query = ("photos/val/limes/2.jpg", "-k", "1", "--json")
    done = transferkit("search", "low", *query)
    assert found(done) == ["val/limes/2.jpg"] and json.loads(done.out)["results"][0]["cosine"] > 0.99999
    assert "has other precision; use the former" in refused("search", "low", *query, "--precision", "32")
    assert "has other precision; use the former" in refused("search", "index", *query, "--precision", "bf16")
    assert "has other engine; use the former" in refused("search", "low", *query, "--engine", "torch")
    assert found(transferkit("search", "index", *query, "--engine", "openvino")) == ["val/limes/2.jpg"]


@with_nncf
@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_an_index_in_int8_keeps_its_network_and_float32_is_never_mixed_with_it(here: Path, extractors: Path) -> None:
    first, query = ["--extractor", str(extractors / "one")], "photos/val/limes/0.jpg"
    refused = transferkit("search", "index", query, "--precision", "int8")
    assert refused.status == 2 and "has other precision" in refused.err and len(refused.err.splitlines()) == 1
    assert transferkit("index", "photos", *first, "--out", "eight", "--precision", "int8").status == 0
    shutil.rmtree(Path(os.environ["TRANSFERKIT_CACHE"]))  # the index needs no cache, nor the images of its ranges
    for name in ("apples", "limes"):
        Path(f"photos/train/{name}/0.jpg").unlink()
    hits = json.loads(transferkit("search", "eight", query, "--json").out)["results"]
    assert hits[0]["path"] == "val/limes/0.jpg" and hits[0]["cosine"] > 0.999
    for other in (["--precision", "32"], ["--engine", "onnx"]):
        refused = transferkit("search", "eight", query, *other)
        assert refused.status == 2 and "has other" in refused.err and len(refused.err.splitlines()) == 1
    again = transferkit("index", "photos", "--out", "eight", "--json")  # without them, by the same network
    assert again.status == 0 and json.loads(again.out)["removed"] == 2
    recorded = json.loads(Path("eight/index.json").read_text())["extractor"]
    assert recorded["precision"] == "int8" and recorded["quantization"]
    mixed = transferkit("index", "photos", "--out", "eight", *first, "--precision", "32")
    assert mixed.status == 2 and "has other precision" in mixed.err


def test_int8_that_cannot_be_computed_is_one_line(here: Path) -> None:
    done = transferkit("search", "index", "photos/val/limes/0.jpg", "--precision", "int8", "--engine", "torch")
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert "PyTorch does not compute in int8; give --engine openvino, or another precision" in done.err
