"""Features are computed once for each image, shared by the verbs, and kept within a limit."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.running import refused, transferkit
from tests.tiny import RESNET, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import cached_features, embed, embed_to_file, feature_cache, fill_features, forget_features
from transferkit.embed.feature_cache import cache_limit, entries, trim
from transferkit.embed.features import make_view
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.search.build import build_index


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "in_use", set())
    return tmp_path / "cache"


def sizes() -> int:
    return sum(entry.bytes for entry in entries())


def test_a_subset_is_served_without_decoding(extractor: Extractor, table: ImageTable, reads: Counter[str]) -> None:
    whole = cached_features(extractor, table)
    reads.clear()
    part = cached_features(extractor, table.select(range(3, 30, 2)))
    assert not reads
    assert torch.equal(part.embedding, whole.embedding[3:30:2]), "rows of the whole table, bit by bit"
    assert part.metadata["reused"] == 14 and "reused" not in whole.metadata
    assert list(part.paths) == list(table.paths[3:30:2]) and list(part.labels) == list(table.labels[3:30:2])
    oracle = embed(table.select(range(3, 30, 2)), extractor)
    torch.testing.assert_close(part.embedding, oracle.embedding, atol=1e-5, rtol=0)


def test_only_missing_images_are_computed(extractor: Extractor, table: ImageTable, reads: Counter[str]) -> None:
    cached_features(extractor, table.select(range(10)))
    cached_features(extractor, table.select(range(20, 30)))
    reads.clear()
    found = cached_features(extractor, table)
    assert set(reads) == {*table.paths[10:20], *table.paths[30:]} and set(reads.values()) == {1}
    torch.testing.assert_close(found.embedding, embed(table, extractor).embedding, atol=1e-5, rtol=0)
    reads.clear()
    assert torch.equal(cached_features(extractor, table).embedding, found.embedding) and not reads


def test_a_changed_image_alone_is_computed_again(extractor: Extractor, table: ImageTable, reads: Counter[str]) -> None:
    before = cached_features(extractor, table)
    changed = Path(table.root, table.paths[5])
    changed.write_bytes(Path(table.root, table.paths[0]).read_bytes())
    reads.clear()
    after = cached_features(extractor, table)
    assert reads == {table.paths[5]: 1}
    torch.testing.assert_close(after.embedding[5], before.embedding[0], atol=1e-5, rtol=0)
    kept = [row for row in range(len(table)) if row != 5]
    assert torch.equal(after.embedding[kept], before.embedding[kept])


def test_unreadable_images_are_named_every_time(extractor: Extractor, table: ImageTable) -> None:
    Path(table.root, table.paths[4]).write_bytes(b"no picture")
    for _ in range(3):
        found = cached_features(extractor, table)
        assert list(found.metadata["broken"]) == [table.paths[4]] and len(found) == len(table) - 1
    part = cached_features(extractor, table.select(range(3, 6)))
    assert list(part.metadata["broken"]) == [table.paths[4]] and len(part) == 2
    Path(table.root, table.paths[4]).write_bytes(Path(table.root, table.paths[3]).read_bytes())
    assert cached_features(extractor, table).metadata["broken"] == {}


def test_random_views_are_reused_only_as_a_whole(extractor: Extractor, table: ImageTable, reads: Counter[str]) -> None:
    from transferkit.images.augmentation import Augmentation

    view = make_view(Augmentation("light", extractor.preprocessing), 0, 0)
    whole = cached_features(extractor, table, view)
    reads.clear()
    assert torch.equal(cached_features(extractor, table, view).embedding, whole.embedding) and not reads
    part = cached_features(extractor, table.select(range(5, 9)), view)
    assert len(reads) == 4 and not torch.equal(part.embedding, whole.embedding[5:9]), "a view depends on the row"
    reads.clear()
    cached_features(extractor, table)
    assert len(reads) == len(table)


@pytest.mark.parametrize("how", ["cut", "garbage", "empty"])
def test_a_damaged_entry_is_computed_again(
    how: str, extractor: Extractor, table: ImageTable, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = cached_features(extractor, table)
    (file,) = cache.rglob("features/*/*.parquet")
    content = file.read_bytes()
    middle = content[:2000] + b"\xff" * 2000 + content[4000:]
    file.write_bytes({"cut": content[:-50], "garbage": middle, "empty": b""}[how])
    assert torch.equal(cached_features(extractor, table).embedding, whole.embedding)


def test_entries_of_earlier_versions_are_not_found(
    extractor: Extractor, table: ImageTable, cache: Path, reads: Counter[str]
) -> None:
    old = embed(table, extractor)
    old.save(cache / "features" / f"{'0' * 64}.parquet")
    reads.clear()
    cached_features(extractor, table)
    assert set(reads.values()) == {1}
    assert len(list(entries())) == 2, "but they are listed, and go when there is no room"


def test_fit_probe_embed_and_test_share(photo_folder: Path, tmp_path: Path, reads: Counter[str]) -> None:
    torch.manual_seed(0)
    extractor = Extractor.from_pretrained("resnet18", "none", None, RESNET["preprocessing"])
    extractor.save_pretrained(tmp_path / "extractor")
    options = ("--extractor", str(tmp_path / "extractor"))
    done = transferkit("embed", str(photo_folder), *options, "--out", str(tmp_path / "e.parquet"))
    assert done.status == 0, done.err
    assert set(reads.values()) == {1}
    reads.clear()
    module, data, _ = fit(tmp_path / "run", photo_folder, {"backbone": str(tmp_path / "extractor")}, epochs=1)
    done = transferkit("probe", str(photo_folder), *options, "--out", str(tmp_path / "probe"), "--fast")
    assert done.status == 0, done.err
    done = transferkit("embed", str(photo_folder / "val"), *options, "--out", str(tmp_path / "v.parquet"))
    assert "24 images" not in done.err
    assert set(reads) <= {path.removeprefix("val/") for path in open_images(photo_folder).paths}, "another root"
    reads.clear()
    evaluated = ImageDataModule(str(photo_folder))
    evaluated.preprocessing = module.preprocessing
    evaluated.setup("test")
    fill_features(extractor, evaluated, ("val",))
    assert not reads and torch.equal(evaluated.features["val"][0], data.features["val"][0])


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


def test_an_index_leaves_nothing_that_nobody_reads(extractor: Extractor, images: Path, tmp_path: Path) -> None:
    source = {"source": "x", "weights": "DEFAULT"}
    build_index(open_images(images), tmp_path / "index", extractor, source)
    before = {entry.file for entry in entries()}
    for number in range(3):
        new = images / "limes" / f"new{number}.png"
        new.write_bytes((images / open_images(images).paths[number]).read_bytes())
        change = build_index(open_images(images), tmp_path / "index", extractor, source)[1]
        assert (change.added, change.refreshed) == (1, 0)
        assert {entry.file for entry in entries()} == before
    forget_features(extractor, open_images(images))
    assert not list(entries())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20GB", 20e9), ("500MB", 5e8), ("1.5 tb", 1.5e12), ("10GiB", 10 * 2**30), ("4096", 4096), ("0", 0), ("2k", 2000)],
)
def test_the_limit_has_units(text: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", text)
    assert cache_limit() == expected


@pytest.mark.parametrize("text", ["much", "20 bananas", "-1GB", "1e9"])
def test_a_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", text)
    assert refused(transferkit("cache"), "TRANSFERKIT_CACHE_LIMIT is .*500MB or 20GB")
    with pytest.raises(UserError, match="TRANSFERKIT_CACHE_LIMIT"):
        cached_features(Extractor.from_pretrained("resnet18", "none"), open_images(photo_folder))


def test_the_least_recently_used_goes_first(
    extractor: Extractor, table: ImageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(rows: range) -> None:
        """A process of its own: nothing is in use when it starts."""
        feature_cache.in_use.clear()
        cached_features(extractor, table.select(rows))

    parts = [range(start, start + 10) for start in (0, 10, 20)]
    for part in parts:
        command(part)
        for entry in entries():  # an hour later
            os.utime(entry.file, (entry.used - 3600,) * 2)
    command(parts[0])  # the oldest is used again
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", str(sizes() + 1000))
    command(range(30, 40))
    left = {path for entry in entries() for path in Embeddings.load(entry.file).paths}
    assert left == {*table.paths[:10], *table.paths[20:40]}, "the second had not been used for the longest time"
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", "0")
    command(range(5, 15))
    assert {path for entry in entries() for path in Embeddings.load(entry.file).paths} >= set(table.paths[5:10])
    feature_cache.in_use.clear()
    trim()
    assert not list(entries())


def test_what_is_in_use_stays(extractor: Extractor, table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", "1")
    for part in (range(20), range(20, 41)):
        cached_features(extractor, table.select(part))
    assert len(list(entries())) == 2


def test_shards_that_another_command_may_write_stay_for_a_day(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", "0")
    shards = cache / "features" / "space" / ".x.parquet.0.parts"
    shards.mkdir(parents=True)
    (shards / "000000.parquet").write_bytes(b"x" * 100)
    trim()
    assert shards.is_dir()
    long_ago = time.time() - 2 * 86400
    os.utime(shards / "000000.parquet", (long_ago, long_ago))
    trim()
    assert not shards.exists() and not shards.parent.exists()
