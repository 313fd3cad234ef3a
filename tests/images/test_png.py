"""PNG: every depth and color type, with and without transparency, by hand from its definition (W3C PNG)."""

import struct

import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo

from tests.image_corpus import encode, photo, png
from tests.images.test_tiff import is_right, outcome
from tests.images.tiffs import stored

SIZE = 16


def drawn(depth: int, channels: int) -> np.ndarray:
    return np.random.default_rng(depth + channels).integers(0, 2**depth, (SIZE, SIZE, channels))


def file_of(values: np.ndarray, depth: int, color: int, **chunks: bytes) -> bytes:
    rows = (b"\0" + stored(row[None], depth, ">") for row in values)  # no filter
    return png(SIZE, SIZE, depth, color, b"".join(rows), **chunks)


def eight_bits(values: np.ndarray, depth: int) -> np.ndarray:
    return values >> 8 if depth == 16 else values * 255 // (2**depth - 1)


def test_more_text_than_is_inflated_is_named() -> None:
    info = PngInfo()
    info.add_text("note", "a" * 3_000_000, zip=True)
    data = encode(photo(20, 30), "PNG", pnginfo=info)
    assert outcome(data) == "PNG with more text beside its pixels than is read; remove its metadata"


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("color", [0, 2])
@pytest.mark.parametrize("upper_bits", [False, True])
def test_a_color_for_transparency_is_in_the_depth_of_the_file(depth: int, color: int, upper_bits: bool) -> None:
    if color == 2 and depth < 8:
        pytest.skip("PNG knows no such thing")
    values = drawn(depth, 3 if color else 1)
    key = values[3, 3].copy()
    values[:2] = key
    if depth == 16:  # alike in one of the two bytes only
        values[0], values[1] = key ^ 1, key ^ 0x100
        values[2] = (key >> 8) * 257
    wanted = np.broadcast_to(eight_bits(values, depth), (SIZE, SIZE, 3)).copy()
    wanted[(values == key).all(-1)] = 255
    told = key | (0xFFFF << depth & 0xFFFF if upper_bits else 0)  # of which a decoder takes no notice
    found = outcome(file_of(values, depth, color, tRNS=struct.pack(f">{len(key)}H", *told.tolist())))
    np.testing.assert_array_equal(found, wanted)
    plain = outcome(file_of(values, depth, color))
    np.testing.assert_array_equal(plain, np.broadcast_to(eight_bits(values, depth), (SIZE, SIZE, 3)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_with_transparency(depth: int) -> None:
    rng, count = np.random.default_rng(depth), 2**depth
    values = drawn(depth, 1)
    colors = rng.integers(0, 256, (count, 3)).astype(np.uint8)
    alpha = rng.integers(0, 256, count - 1).astype(np.uint8)  # the last color has none: it is opaque
    found = outcome(file_of(values, depth, 3, PLTE=colors.tobytes(), tRNS=alpha.tobytes()))
    share = np.append(alpha, 255)[values] / 255
    assert is_right(found, colors[values[..., 0]] * share + 255 * (1 - share), 1)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("color", "channels"), [(4, 2), (6, 4)])
def test_alpha(depth: int, color: int, channels: int) -> None:
    values = eight_bits(drawn(depth, channels), depth)
    share = values[..., -1:] / 255
    wanted = values[..., :-1] * share + 255 * (1 - share)
    found = outcome(file_of(drawn(depth, channels), depth, color))
    assert is_right(found, np.broadcast_to(wanted, (SIZE, SIZE, 3)), 1)


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_values_of_12_bits_in_16_are_not_shown_black(color: int, channels: int) -> None:
    for highest in (4095, 4096, 15, 0):
        values = np.minimum(drawn(16, channels), highest)
        if channels in (2, 4):
            values[..., -1] = 65535
        found = outcome(file_of(values, 16, color))
        if 0 < highest < 4096 and (color, highest) != (4, 15):  # whose low bytes Pillow does not give
            assert found == "16-bit pixels below 4096: 12-bit values? scale them to 16 bits", highest
        else:
            colors = values if color in (0, 2) else values[..., :-1]
            np.testing.assert_array_equal(found, np.broadcast_to(colors >> 8, (SIZE, SIZE, 3)))


@pytest.mark.parametrize("highest", [1, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_pgm_and_ppm_are_stretched_by_the_maximum_that_they_name(highest: int, channels: int) -> None:
    values = np.random.default_rng(highest).integers(0, highest + 1, (SIZE, SIZE, channels))
    depth = 8 if highest < 256 else 16
    data = f"P{5 if channels == 1 else 6} {SIZE} {SIZE} {highest}\n".encode() + stored(values, depth, ">")
    assert is_right(outcome(data), np.broadcast_to(values / highest * 255, (SIZE, SIZE, 3)), 1)
