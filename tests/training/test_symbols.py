"""Drawn symbols: no digit, the format of scikit-learn's digits, an ordinary folder of class folders."""

import string
from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image
from sklearn.datasets import load_digits

from transferkit.data.image_table import open_images
from transferkit.training.symbols import FONTS, LETTER_FONTS, SYMBOLS, draw_symbol, open_font, write_symbols


def test_no_symbol_is_a_digit() -> None:
    assert set(SYMBOLS) == {*string.ascii_letters, *string.punctuation}


@pytest.mark.parametrize("font", FONTS + LETTER_FONTS)
def test_fonts_have_the_symbols(font: str) -> None:
    known = FT2Font(open_font(font).path).get_charmap()
    wanted = string.ascii_letters if font in LETTER_FONTS else SYMBOLS
    assert {ord(symbol) for symbol in wanted} <= set(known)


def test_drawings_look_like_the_digits() -> None:
    generator = np.random.default_rng(0)
    images = np.stack([draw_symbol(letter, FONTS[0], generator) for letter in 4 * string.ascii_letters])
    assert images.dtype == np.uint8 and images.shape[1:] == (8, 8)
    levels = {round(level * 255 / 16) for level in range(17)}
    assert set(np.unique(images).tolist()) <= levels
    digits = load_digits().images * 255 / 16
    assert abs(images.mean() - digits.mean()) < 0.25 * digits.mean()
    for axis in (1, 2):  # mean over rows, and over columns
        profiles = [pictures.mean((0, axis)) for pictures in (images, digits)]
        assert np.corrcoef(profiles)[0, 1] > (0.9 if axis == 1 else -1)
    assert images[:, 1:-1, 2:-2].any((1, 2)).all()  # none is empty


def test_class_folders(tmp_path: Path) -> None:
    written: list[int] = []
    (tmp_path / "a").mkdir()
    write_symbols(tmp_path / "a", 2, 0, written.append)
    table = open_images(tmp_path / "a")
    assert len(table) == sum(written) == 2 * len(SYMBOLS)
    assert table.class_names == sorted(f"U+{ord(symbol):04X}" for symbol in SYMBOLS)
    with Image.open(tmp_path / "a" / "U+0041" / "001.png") as image:
        assert image.size == (8, 8) and image.mode == "L"
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_symbols(tmp_path / name, 2, seed, written.append)
    pixels = [
        np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / name).rglob("*.png"))])
        for name in ("a", "same", "other")
    ]
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])
