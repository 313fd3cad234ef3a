"""The feature cache keeps within its limit."""

import os
import time
from pathlib import Path

import pytest

from tests.running import refused, transferkit
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import cached_features, feature_cache
from transferkit.embed.feature_cache import cache_limit, entries, trim
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.quantization import int8_folder

pytestmark = pytest.mark.usefixtures("cache")


def sizes() -> int:
    return sum(entry.bytes for entry in (*entries(), *feature_cache.decoded()))


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
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", str(sizes() + min(entry.bytes for entry in entries()) // 2))
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


def test_networks_in_int8_are_listed_and_the_oldest_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (int8_folder() / f"{name}.onnx" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for file, age in ((old, 2 * feature_cache.INTERRUPTED), (new, 0)):
        file.write_bytes(b"0" * 100)
        os.utime(file, (time.time() - age,) * 2)
    assert {entry.file: (entry.bytes, entry.is_network) for entry in entries()} == {
        old: (100, True),
        new: (100, True),
    }
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", "10B")
    trim()
    assert [entry.file for entry in entries()] == [new], "one of the last day, which a command may run"
