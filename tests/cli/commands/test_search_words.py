"""``transferkit search --text``: images by words, alone or with images; an index knows whether it can be asked."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from tests.backbones.words import save_dual
from tests.running import Done, refused, transferkit, write_photos
from transferkit import Embeddings, Extractor

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
QUERY = "photos/val/limes/0.jpg"
TEXTS = ["a red mushroom", "lime"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with photos and a model of images and texts."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    with chdir(tmp_path):
        write_photos(Path("photos"), COLOURS, {"val": 4})
        save_dual("clip", Path("clip"))
        yield tmp_path


def index(*arguments: str) -> Done:
    return transferkit("index", "photos", "--accelerator", "cpu", *arguments)


def test_words_find_what_the_library_finds() -> None:
    done = index("--extractor", "clip", "--pooling", "projection")
    assert done.status == 0 and 'transferkit search index --text "a red mushroom"' in done.err
    table = Embeddings.load("index/embeddings.parquet")
    tokens = AutoTokenizer.from_pretrained("clip")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = F.normalize(AutoModel.from_pretrained("clip").get_text_features(**tokens).pooler_output)
    image = Extractor.from_pretrained("clip", pooling="projection").embed([QUERY])
    for images, asked, rows in (
        ([], TEXTS[:1], texts[:1]),
        ([], TEXTS, texts),
        ([QUERY], TEXTS[:1], torch.cat([F.normalize(image), texts[:1]])),
    ):
        words = [part for text in asked for part in ("--text", text)]
        done = transferkit("search", "index", *images, *words, "-k", "3", "--json", "--html", "found.html")
        assert done.status == 0, done.err
        said = json.loads(done.out)
        cosine = F.normalize(table.embedding) @ F.normalize(rows.mean(0), dim=0)
        best = cosine.topk(3)
        assert [hit["path"] for hit in said["results"]] == [table.paths[row] for row in best.indices]
        assert [hit["cosine"] for hit in said["results"]] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert said["text"] == asked and asked[0] in Path("found.html").read_text(encoding="utf-8")


def test_a_siglip_can_be_asked_as_it_is() -> None:
    save_dual("siglip", Path("siglip"))
    assert index("--extractor", "siglip").status == 0
    assert transferkit("search", "index", "--text", "lime").status == 0


def test_an_index_says_that_it_cannot_be_asked() -> None:
    done = index("--extractor", "clip")
    assert "it cannot be asked by words with pooling pooler; give --pooling projection for that" in done.err
    Path("clip").rename("moved")  # it is known without the extractor
    assert refused(transferkit("search", "index", "--text", "lime"), "index cannot be asked by words: .*pooling pooler")
    record = json.loads(Path("index/index.json").read_text())
    del record["words"]  # as an earlier version wrote it
    Path("index/index.json").write_text(json.dumps(record))
    Path("moved").rename("clip")
    done = transferkit("search", "index", "--text", "lime", "--accelerator", "cpu")
    assert refused(done, "it cannot be asked by words: pooling pooler of .* is not in the space")


def test_bad_queries() -> None:
    index("--extractor", "clip", "--pooling", "projection")
    assert refused(transferkit("search", "index", "--text", " "), "text 1 of 1 is empty")
    assert refused(transferkit("search", "index", "--text"), "--text needs a value")
    assert refused(transferkit("search", "index"), "give images to search for, or --row with an indexed one, or --text")
    assert refused(transferkit("search", "index", "--row", "0", "--text", "lime"), "give images to search for")
