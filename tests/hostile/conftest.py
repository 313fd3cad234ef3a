"""Fixtures of the hostile tests: a trained checkpoint, and a working directory."""

import os
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from tests.hostile.entrances import SMALL
from tests.running import transferkit, write_photos

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory; environment variables that a run sets are removed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/val x apples/limes, 4 images each."""
    place = tmp_path_factory.mktemp("hostile")
    write_photos(place / "photos", COLOURS, {"train": 4, "val": 4})
    return place / "photos"


@pytest.fixture(scope="session")
def run(photos: Path) -> Path:
    """A finished run of a tiny ResNet on them."""
    with chdir(photos.parent), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(photos.parent / "cache"))
        done = transferkit("fit", "--data.root", "photos", *SMALL, "--trainer.max_epochs", "1", "--name", "tiny")
    assert done.status == 0, done.err
    return photos.parent / "runs/tiny/0"


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Path:
    """Its best checkpoint."""
    return run / "checkpoints/best.ckpt"
