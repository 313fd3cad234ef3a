"""A small real extractor on disk, and images for it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.backbones.families import save
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import feature_cache
from transferkit.extractor import Extractor


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT in Hugging Face layout; takes 32 pixels, gives 32 numbers."""
    folder = tmp_path_factory.mktemp("vit") / "tiny"
    save("vit", folder)
    return folder


@pytest.fixture
def extractor(vit: Path) -> Extractor:
    return Extractor.from_pretrained(vit)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """41 pictures of two classes, an odd number."""
    noise = np.random.default_rng(0)
    for number in range(41):
        path = tmp_path / "images" / ("limes" if number % 3 else "apples") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def table(images: Path) -> ImageTable:
    return open_images(images)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty feature cache of which nothing is in use."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "in_use", set())
    return tmp_path / "cache"
