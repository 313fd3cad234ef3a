"""``cache``: what is kept, and how it is emptied."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.backbones.families import save
from tests.running import refused, transferkit
from transferkit.data import memory
from transferkit.embed import feature_cache


@pytest.fixture(autouse=True)
def here(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo_folder.parent)
    monkeypatch.setenv("TRANSFERKIT_CACHE", "cache")
    save("vit", Path("vit"))
    for split in ("train", "val"):
        done = transferkit("embed", f"photos/{split}", "--extractor", "vit", "--out", f"{split}.parquet")
        assert done.status == 0, done.err


def files() -> list[Path]:
    return sorted(Path("cache/features").rglob("*.parquet"))


def test_what_is_kept() -> None:
    done = transferkit("cache", "--json")
    assert done.status == 0, done.err
    said = json.loads(done.out)
    tables = [entry for entry in said["entries"] if entry["extractor"] != "(decoded images)"]
    assert [(entry["extractor"], entry["pooling"], entry["images"]) for entry in tables] == [("vit", "cls", 12)] * 2
    assert {Path(entry["of"]).name for entry in tables} == {"train", "val"}
    every = [*files(), *Path("cache/decoded").glob("*.sqlite")]
    assert said["bytes"] == sum(file.stat().st_size for file in every) and said["limit_bytes"] == 20 * 10**9
    assert {Path(entry["file"]) for entry in said["entries"]} == {file.absolute() for file in every}
    listed = transferkit("cache", "list")
    assert listed == transferkit("cache") and f"{len(every)} entries" in listed.out and "of 20 GB" in listed.out
    assert listed.out.count("vit") == 2


def test_decoded_images_and_datasets_are_listed_and_cleared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.add(str(Path("photos").absolute()), {"train/apples/0.jpg": None})
    images = Path("cache/datasets/cifar10/images")
    images.mkdir(parents=True)
    (images / "0.png").write_bytes(b"12345")
    listed = transferkit("cache").out
    assert "(decoded images)" in listed and "(dataset cifar10)" in listed and " 5 " in listed
    monkeypatch.setenv("TRANSFERKIT_CACHE_LIMIT", "0")
    feature_cache.in_use.clear()
    feature_cache.trim()
    assert not files() and not list(Path("cache").glob("decoded/*")), "the limit is of all that was computed"
    assert (images / "0.png").exists(), "a dataset may be the user's own"
    assert transferkit("cache", "clear").status == 0
    assert not [path for path in Path("cache").rglob("*") if path.is_file()]


def test_damaged_and_unfinished_entries_are_listed_and_cleared() -> None:
    files()[0].write_bytes(b"x")
    parts = files()[0].parent / ".y.parquet.0.parts"
    parts.mkdir()
    listed = transferkit("cache").out
    assert "(damaged)" in listed and "(unfinished)" in listed
    done = transferkit("cache", "clear")
    assert done.status == 0 and not list(Path("cache/features").iterdir())


def test_clear_what_was_not_used_for_long() -> None:
    old, recent = files()
    then = time.time() - 10 * 86400
    os.utime(old, (then, then))
    done = transferkit("cache", "clear", "--older-than", "9d", "--json")
    assert json.loads(done.out)["removed"] == 1 and files() == [recent]
    assert json.loads(transferkit("cache", "--older-than", "1h", "--json").out)["entries"] == []
    assert transferkit("cache", "clear").status == 0 and not files()
    assert transferkit("cache", "clear").status == 0
    assert "0 entries" in transferkit("cache").out


def test_what_is_cleared_is_computed_again() -> None:
    before = Path("train.parquet").read_bytes()
    transferkit("cache", "clear")
    done = transferkit("embed", "photos/train", "--extractor", "vit", "--out", "again.parquet")
    assert done.status == 0 and "earlier run" not in done.err
    assert Path("again.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["burn"], "burn"),
        (["clear", "--older-than", "soon"], "--older_than is 'soon'; give a number with s, m, h, d or w"),
        (["clear", "--older", "1d"], "did you mean --older_than"),
        (["list", "clear"], "unexpected argument"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    assert refused(transferkit("cache", *arguments), message)
    assert len(files()) == 2
