"""A file of embeddings is written from the feature cache if that has every image."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.embed import cached_features, embed_to_file
from transferkit.extractor import Extractor

pytestmark = pytest.mark.usefixtures("cache")


def test_embed_takes_all_from_the_cache_or_nothing(
    extractor: Extractor, table: ImageTable, tmp_path: Path, reads: Counter[str]
) -> None:
    cached_features(extractor, table.select(range(40)))
    reads.clear()
    done = embed_to_file(extractor, table, tmp_path / "e.parquet", extractor.forward())
    assert done.embedded == 41 and len(reads) == 41, "the file would depend on what other commands have done"
    first = (tmp_path / "e.parquet").read_bytes()
    reads.clear()
    assert embed_to_file(extractor, table, tmp_path / "e.parquet", extractor.forward()).embedded == 0
    again = embed_to_file(extractor, table, tmp_path / "again.parquet", extractor.forward())
    assert (again.images, again.embedded) == (41, 0) and not reads
    one, two = Embeddings.load(tmp_path / "e.parquet"), Embeddings.load(tmp_path / "again.parquet")
    assert torch.equal(one.embedding, two.embedding) and one.metadata == two.metadata
    assert (one.paths, one.labels, one.splits) == (two.paths, two.labels, two.splits)
    assert (tmp_path / "e.parquet").read_bytes() == first
    embed_to_file(extractor, table, tmp_path / "b.parquet", extractor.forward("bf16"))
    assert len(reads) == 41, "of another precision"


def test_embed_in_a_read_only_home(
    extractor: Extractor, table: ImageTable, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file in its place")
    done = embed_to_file(extractor, table, tmp_path / "e.parquet", extractor.forward())
    assert done.embedded == 41
    assert "later commands will embed these images again: cannot write the cache folder" in caplog.text
