"""Features are computed once for each image, shared by the verbs, and kept within a limit."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.running import transferkit
from tests.tiny import RESNET, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import cached_features, embed, fill_features, forget_features
from transferkit.embed.feature_cache import entries
from transferkit.embed.features import make_view
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.search.build import build_index

pytestmark = pytest.mark.usefixtures("cache")


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


def test_fit_probe_embed_and_test_share(
    photo_folder: Path, tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    extractor = Extractor.from_pretrained("resnet18", "none", None, RESNET["preprocessing"])
    extractor.save_pretrained(tmp_path / "extractor")
    options = ("--extractor", str(tmp_path / "extractor"))
    done = transferkit("embed", str(photo_folder), *options, "--out", str(tmp_path / "e.parquet"))
    assert done.status == 0, done.err
    assert set(reads.values()) == {1}
    reads.clear()
    module, data, _ = fit(tmp_path / "run", photo_folder, {"backbone": str(tmp_path / "extractor")}, epochs=1)
    assert not reads
    with monkeypatch.context() as blocked:
        blocked.setattr(Forward, "__call__", None)  # its report still reads the images that it shows
        done = transferkit("probe", str(photo_folder), *options, "--out", str(tmp_path / "probe"), "--fast")
    assert done.status == 0, done.err
    reads.clear()
    done = transferkit("embed", str(photo_folder / "val"), *options, "--out", str(tmp_path / "v.parquet"))
    assert "24 images" not in done.err
    assert set(reads) <= {path.removeprefix("val/") for path in open_images(photo_folder).paths}, "another root"
    reads.clear()
    evaluated = ImageDataModule(str(photo_folder))
    evaluated.preprocessing = module.preprocessing
    evaluated.setup("test")
    fill_features(extractor, evaluated, ("val",))
    assert not reads and torch.equal(evaluated.features["val"][0], data.features["val"][0])


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
