"""Drawn letters and punctuation marks to pretrain on, in the format of scikit-learn's handwritten digits.

No symbol is a digit. Each is drawn from fonts that matplotlib ships, as if by many hands: slanted, turned, bent, and
with strokes of several widths. As with the digits (Alpaydin and Kaynak 1998, doi:10.24432/C50P49), the drawing becomes
a black and white bitmap of 32 x 32 pixels, and a gray level is the number of white pixels in a block of 4 x 4.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SYMBOLS = tuple(symbol for symbol in map(chr, range(0x21, 0x7F)) if not symbol.isdigit())  # printable ASCII
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralItalic",
)  # fmt: skip
LETTER_FONTS = ("cmr10", "cmss10", "cmtt10", "cmmi10")  # in TeX's encoding, which is ASCII's for letters only
CANVAS, FONT_SIZE = 96, 48  # pixels
CELL = CANVAS // 3  # a drawing is bent at the 4 x 4 corners of 3 x 3 cells
TURN, SLANT, BEND = np.deg2rad(8), 0.2, 2.5  # standard deviations: radians, share of the height, pixels
BITMAP, BLOCK = 32, 4  # pixels of a side
WIDEST = 24  # pixels: handwritten digits are as high as their bitmap, and at most so wide
STRETCH = 2  # a wide symbol is made up to this many times higher
Cell = tuple[tuple[int, int, int, int], tuple[float, ...]]  # left, top, right, bottom; four corners, x and y
WHITE = 96  # gray level from which a pixel is white: low enough for thin strokes


def folder_name(symbol: str) -> str:
    """Return the name of a symbol's class folder, the same on systems that ignore case.

    >>> folder_name("A")
    'U+0041'
    """
    return f"U+{ord(symbol):04X}"


def write_symbols(folder: Path, drawings: int, seed: int, advance: Callable[[int], None]) -> None:
    """Write ``folder/U+0041/000.png`` and so on: a class folder per symbol.

    Args:
        folder: an empty directory.
        drawings: number per symbol.
        seed: the same seed gives the same images.
        advance: called with the number of images written since the last call.
    """
    for symbol in SYMBOLS:
        generator = np.random.default_rng((seed, ord(symbol)))
        images = folder / folder_name(symbol)
        images.mkdir()
        fonts = FONTS + LETTER_FONTS * symbol.isalpha()
        for number in range(drawings):
            gray = draw_symbol(symbol, fonts[number % len(fonts)], generator)
            Image.fromarray(gray).save(images / f"{number:03d}.png")
        advance(drawings)


def draw_symbol(symbol: str, font: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a symbol once.

    Args:
        symbol: one character.
        font: name of a font file that matplotlib ships, without its suffix.
        generator: determines stroke width, rotation, slant, bends, size and position.

    Returns:
        uint8 (8, 8), 17 gray levels from 0 (black, the background) to 255.
    """
    opened = open_font(font)
    left, top, right, bottom = opened.getbbox(symbol)
    widest_stroke = 1 + int(max(right - left, bottom - top)) // 18  # leaves holes open
    stroke = int(generator.integers(0, widest_stroke, endpoint=True))
    canvas = Image.new("L", (CANVAS, CANVAS))
    middle = (CANVAS // 2, CANVAS // 2)
    ImageDraw.Draw(canvas).text(middle, symbol, fill=255, font=opened, anchor="mm", stroke_width=stroke)
    bent = canvas.transform(canvas.size, Image.Transform.MESH, random_mesh(generator), Image.Resampling.BILINEAR)
    white = np.asarray(fit_bitmap(bent, generator)) > WHITE  # (32, 32)
    side = BITMAP // BLOCK
    counts = white.reshape(side, BLOCK, side, BLOCK).sum((1, 3))  # (8, 8), 0..16
    gray: NDArray[np.uint8] = np.rint(counts * (255 / BLOCK**2)).astype(np.uint8)
    return gray


@cache
def open_font(name: str) -> ImageFont.FreeTypeFont:
    """Open a font that matplotlib ships."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", FONT_SIZE)


def random_mesh(generator: np.random.Generator) -> list[Cell]:
    """Return cells of the new drawing, each with the quadrilateral of the canvas that fills it, as Pillow takes them.

    All corners are turned, slanted and scaled about the middle; then each moves a little by itself.
    """
    angle, slant = generator.normal(0, TURN), generator.normal(0, SLANT)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(generator.uniform(0.85, 1.15, 2))
    steps = np.arange(0, CANVAS + 1, CELL) - CANVAS / 2
    corners = np.stack(np.meshgrid(steps, steps), axis=-1) @ linear.T + CANVAS / 2  # (4, 4, 2), x and y
    corners += generator.normal(0, BEND, corners.shape)
    mesh: list[Cell] = []
    for row in range(3):
        for column in range(3):
            left, top = column * CELL, row * CELL
            around = corners[[row, row + 1, row + 1, row], [column, column, column + 1, column + 1]]  # from top left
            mesh.append(((left, top, left + CELL, top + CELL), tuple(around.ravel().tolist())))
    return mesh


def fit_bitmap(drawing: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Return the symbol near the middle of 32 x 32 pixels, about as high as they are and at most 24 pixels wide."""
    box = drawing.getbbox() or (0, 0, CANVAS, CANVAS)
    width, height = box[2] - box[0], box[3] - box[1]
    fill = generator.uniform(0.9, 1)
    across, up = fill * WIDEST / width, fill * BITMAP / height
    across, up = min(across, up), min(up, STRETCH * across)
    size = (max(1, round(across * width)), max(1, round(up * height)))
    symbol = drawing.crop(box).resize(size, Image.Resampling.BILINEAR)
    shift = (int(generator.integers(-2, 3)), int(generator.integers(-1, 2)))
    bitmap = Image.new("L", (BITMAP, BITMAP))
    bitmap.paste(symbol, ((BITMAP - size[0]) // 2 + shift[0], (BITMAP - size[1]) // 2 + shift[1]))
    return bitmap
