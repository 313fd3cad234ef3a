"""Measures of a picture against SciPy, NumPy and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import laplace
from scipy.stats import entropy

from transferkit.images.quality import picture_stats


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (60, 90, 3)).astype(np.uint8)


def test_measures_are_those_of_other_libraries(pixels: np.ndarray) -> None:
    stats = picture_stats(torch.from_numpy(pixels).movedim(-1, 0))
    gray = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert stats.sharpness == pytest.approx(laplace(gray)[1:-1, 1:-1].var(), rel=1e-4)
    assert (stats.low, stats.high) == pytest.approx(tuple(np.quantile(gray, [0.05, 0.95]) / 255), abs=1e-5)
    histogram = np.bincount(np.rint(gray).astype(int).ravel(), minlength=256)
    assert stats.entropy == pytest.approx(entropy(histogram, base=2), abs=1e-3)
    assert stats.entropy == pytest.approx(Image.fromarray(pixels).convert("L").entropy(), abs=0.05)
    assert stats.aspect == 1.5


def test_blurring_lowers_the_sharpness_of_small_and_large_pictures() -> None:
    noise = torch.randint(0, 255, (3, 600, 800), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise.float(), 15, 1, 7).byte()
    assert picture_stats(blurred).sharpness < 0.1 * picture_stats(noise).sharpness


@pytest.mark.parametrize(("value", "high", "low"), [(0, 0, 0), (255, 1, 1)])
def test_one_color(value: int, high: float, low: float) -> None:
    stats = picture_stats(torch.full((3, 40, 40), value, dtype=torch.uint8))
    assert stats == pytest.approx((high, low, 0, 0, 1), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (2, 2)])
def test_very_small_and_thin_pictures(size: tuple[int, int]) -> None:
    assert picture_stats(torch.zeros(3, *size, dtype=torch.uint8)).sharpness == 0
