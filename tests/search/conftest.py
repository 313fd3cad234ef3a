"""A small extractor and folders of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.extractor.examples import transformer
from transferkit.data.image_table import open_images
from transferkit.extractor import Extractor
from transferkit.search.build import Change, build_index
from transferkit.search.index import ImageIndex

SOURCE = {"source": "somewhere", "weights": "DEFAULT"}


@pytest.fixture(scope="session")
def extractor() -> Extractor:
    """A tiny ViT of 32 pixels."""
    return transformer("vit", "cls")


@pytest.fixture
def passes(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through the backbone."""
    seen: list[int] = []
    forward = type(extractor.backbone).forward
    monkeypatch.setattr(
        type(extractor.backbone), "forward", lambda self, pixels: (seen.append(len(pixels)), forward(self, pixels))[1]
    )
    return seen


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Writes a noisy picture, decided by its seed."""

    def write(path: Path, seed: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC).save(path)
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """Two classes of six pictures."""
    for number in range(12):
        draw(tmp_path / "pictures" / ("even" if number % 2 == 0 else "odd") / f"{number:02d}.png", number)
    return tmp_path / "pictures"


@pytest.fixture
def build(pictures: Path, tmp_path: Path, extractor: Extractor) -> Callable[..., tuple[ImageIndex, Change]]:
    """Index the pictures into tmp_path/index."""

    def run(**options: Any) -> tuple[ImageIndex, Change]:
        return build_index(open_images(pictures), tmp_path / "index", extractor, SOURCE, **options)

    return run
