"""A picture of too many pixels is refused by what its file declares, before a plugin decodes it."""

import re
import sys
import types
from collections.abc import Callable

import pytest
from PIL import Image, ImageFile

from tests.image_corpus import encode, photo
from tests.images.test_tiff import outcome
from transferkit.images import decoding
from transferkit.images.declared import declared_size

TYPE = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # ISO 18181-1, D.2


def jxl(width: int, height: int, ratio: int = 0, small: bool = False) -> bytes:
    """The size header of a codestream, bit by bit; the bits of a byte are filled from its low end."""
    fields = [(int(small), 1)]

    def side(value: int) -> list[tuple[int, int]]:
        if small:
            return [(value // 8 - 1, 5)]
        selector = next(number for number, bits in enumerate((9, 13, 18, 30)) if value <= 1 << bits)
        return [(selector, 2), (value - 1, (9, 13, 18, 30)[selector])]

    fields += [*side(height), (ratio, 3), *([] if ratio else side(width))]
    number = at = 0
    for value, bits in fields:
        number, at = number | value << at, at + bits
    return b"\xff\x0a" + number.to_bytes(12, "little")


def box(kind: bytes, content: bytes, long: bool = False) -> bytes:
    size = len(content) + (16 if long else 8)
    return (b"\0\0\0\1" + kind + size.to_bytes(8) if long else size.to_bytes(4) + kind) + content


def ispe(*sizes: tuple[int, int]) -> bytes:
    return HEIC + b"".join(box(b"ispe", bytes(4) + w.to_bytes(4) + h.to_bytes(4)) for w, h in sizes)


WRAPPED: list[Callable[[bytes], bytes]] = [
    lambda stream: stream,
    lambda stream: TYPE + box(b"jxlc", stream),
    lambda stream: TYPE + box(b"Exif", bytes(40)) + box(b"jxlc", stream, long=True),
    lambda stream: TYPE + b"\0\0\0\0jxlc" + stream,  # to the end of the file
    lambda stream: TYPE + box(b"jxlp", bytes(4) + stream[:3]) + box(b"jxlp", b"\x80\0\0\1" + stream[3:]),
]


@pytest.mark.parametrize("wrap", range(len(WRAPPED)))
@pytest.mark.parametrize(
    "size", [(1, 1), (512, 513), (8192, 8193), (1, 300_000), (2**18 + 1, 9), (2**30, 2**30)], ids=str
)
def test_sizes_of_jpeg_xl(wrap: int, size: tuple[int, int]) -> None:
    assert declared_size(WRAPPED[wrap](jxl(*size))) == size


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_of_jpeg_xl(ratio: int) -> None:
    over, under = RATIOS[ratio]
    assert declared_size(jxl(0, 720, ratio)) == (720 * over // under, 720)
    assert declared_size(jxl(0, 48, ratio, small=True)) == (48 * over // under, 48)
    assert declared_size(jxl(256, 8, small=True)) == (256, 8)


def test_sizes_of_heic_and_avif() -> None:
    assert declared_size(ispe((64, 48), (30_000, 40_000), (160, 120))) == (30_000, 40_000)
    assert declared_size(encode(photo(48, 64), "AVIF")) == (64, 48)
    assert declared_size(HEIC) is None and declared_size(b"") is None and declared_size(TYPE) == (1, 1)


class Bomb(ImageFile.ImageFile):
    """Stands for a plugin that decodes as it opens."""

    def _open(self) -> None:
        raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("name", "module", "data"),
    [
        ("JXL", "pillow_jxl", jxl(60_000, 60_000)),
        ("JXL", "pillow_jxl", jxl(2**30, 1)),
        ("HEIF", "pillow_heif.HeifImagePlugin", ispe((60_000, 60_000))),
    ],
)
def test_no_plugin_sees_a_bomb(name: str, module: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in {module.partition(".")[0], module}:
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN, name: (Bomb, lambda _: True)})
    monkeypatch.setattr(Image, "ID", [*Image.ID, name])
    assert re.fullmatch(r"\d+ x \d+ pixels, more than the limit of \d+( on a side)?", str(outcome(data)))
    with pytest.raises(decoding.ImageError, match="more than the limit"):
        decoding.inspect(data)


def test_an_avif_that_says_it_is_large() -> None:
    data = encode(photo(48, 64), "AVIF")
    size, large = (64).to_bytes(4) + (48).to_bytes(4), (30_000).to_bytes(4) * 2
    assert outcome(data.replace(size, large)) == "30000 x 30000 pixels, more than the limit of 134217728"
