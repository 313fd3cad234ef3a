"""TIFF: every layout is read as its definition says, or refused by its name; files and pixels are made by hand."""

import itertools
import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.images.tiffs import DEFLATE, NONE, SHORT, picture, tiff
from transferkit.images.decoding import ImageError, decode

HEIGHT, WIDTH = 16, 24
COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3}


def outcome(data: bytes) -> np.ndarray | str:
    try:
        return decode(data).movedim(0, -1).numpy()
    except ImageError as error:
        return str(error)


def drawn(samples: int, bits: int) -> np.ndarray:
    """Values from end to end of the range."""
    values = np.random.default_rng(samples * bits).integers(0, 2 ** min(bits, 16), (HEIGHT, WIDTH, samples))
    values[0, 0], values[0, 1] = 0, 2 ** min(bits, 16) - 1
    return values


def is_right(found: np.ndarray, wanted: np.ndarray, within: float) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= within)


def shown(values: np.ndarray, bits: int, photometric: int, colors: np.ndarray | None = None) -> np.ndarray:
    """RGB in 0..255, as real numbers, of samples (H, W, colors): TIFF 6.0, sections 4 to 6, 16, 21 and 23."""
    part = values / (2 ** min(bits, 16) - 1)
    match photometric:
        case 0:
            return np.repeat(255 - 255 * part, 3, -1)
        case 1:
            return np.repeat(255 * part, 3, -1)
        case 2:
            return 255 * part
        case 3:
            assert colors is not None
            return colors[:, values[..., 0]].transpose(1, 2, 0) / 257
        case 5:
            return 255 * (1 - part[..., :3]) * (1 - part[..., 3:])
        case 6:
            y, blue, red = (255 * part[..., index] - (0, 128, 128)[index] for index in range(3))
            return np.clip(np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1), 0, 255)  # fmt: skip  # noqa: E501
    raise AssertionError(photometric)


def refused_by_name(reason: object) -> bool:
    return isinstance(reason, str) and len(reason) < 80 and reason.startswith(("TIFF layout is not read", "floating-"))


LAYOUTS = [
    (photometric, bits, planar, compression, reversed, order)
    for photometric, bits, planar, compression, reversed, order in itertools.product(
        (0, 1, 2, 3, 5, 6, 9), (1, 2, 4, 8, 12, 16, 32), (False, True), (NONE, DEFLATE), (False, True), "<>"
    )
]
MUST_BE_READ = {(0, 1), (0, 8), (0, 16), (1, 1), (1, 8), (1, 12), (1, 16), (2, 8), (2, 16), (3, 8), (5, 8), (6, 8)}


@pytest.mark.parametrize("photometric", sorted(COLORS.keys() - {8}))
def test_every_layout_is_read_right_or_refused_by_name(photometric: int) -> None:
    for kind, bits, planar, compression, reversed, order in LAYOUTS:
        if kind != photometric or (kind == 3 and bits > 8):
            continue
        values, more, colors = drawn(COLORS[kind], bits), {}, None
        if kind == 3:
            colors = np.random.default_rng(bits).integers(0, 256, (3, 2**bits)) * 257
            more[320] = (SHORT, tuple(colors.reshape(-1).tolist()))
        if kind == 6:
            more[530] = (SHORT, (1, 1))
        data = picture(
            values, bits, kind, planar=planar, compression=compression, reversed=reversed, order=order, more=more
        )
        found, what = outcome(data), (kind, bits, planar, compression, reversed, order)
        if isinstance(found, str):
            assert refused_by_name(found), (what, found)
            known_to_pillow = order == "<" or (kind, bits) not in {(0, 16), (1, 12)}
            assert planar or reversed or (kind, bits) not in MUST_BE_READ or not known_to_pillow, (what, found)
        else:
            assert is_right(found, shown(values, bits, kind, colors), 2 if kind in (5, 6) else 1), what


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_extra_samples(compression: int, planar: bool, order: str) -> None:
    """Unspecified ones are left out; alpha, multiplied in or not, is composed on white (TIFF 6.0, section 18)."""
    for photometric, bits, extra in itertools.product((1, 2, 3, 5), (8, 16), ((0,), (1,), (2,), (2, 0), (0, 0))):
        colors = COLORS[photometric]
        values = drawn(colors + len(extra), bits)
        alpha = values[..., colors : colors + 1] / (2**bits - 1)
        if extra == (1,):
            values[..., :colors] = values[..., :colors] * alpha
        more = {320: (SHORT, tuple(range(0, 65536, 256)) * 3)} if photometric == 3 else {}
        data = picture(values, bits, photometric, planar=planar, compression=compression, order=order, extra=extra, more=more)  # fmt: skip  # noqa: E501
        found, what = outcome(data), (photometric, bits, extra)
        if isinstance(found, str):
            assert refused_by_name(found), (what, found)
            assert planar or (photometric, extra) not in {(2, (0,)), (2, (1,)), (2, (2,)), (5, (0,))} or bits == 16
            continue
        palette = np.repeat(np.arange(0, 65536, 256)[None], 3, 0)
        plain = shown(values[..., :colors], bits, photometric, palette)
        wanted = {0: plain, 1: plain + 255 * (1 - alpha), 2: plain * alpha + 255 * (1 - alpha)}[extra[0]]
        assert is_right(found, wanted, 2.5), what


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_samples_that_are_no_unsigned_integers(compression: int) -> None:
    for photometric, bits, kind in itertools.product((0, 1, 2), (8, 16, 32), (2, 3, 4, 5)):
        data = picture(drawn(COLORS[photometric], bits), bits, photometric, sample_format=kind, compression=compression)
        found = outcome(data)
        if (photometric, bits, kind) == (1, 32, 2):  # as Pillow writes 32-bit pictures; the values say that they fit
            assert is_right(found, np.repeat(drawn(1, 32) >> 8, 3, -1), 0)
        else:
            assert refused_by_name(found), (photometric, bits, kind, found)


@pytest.mark.parametrize("planar", [False, True])
def test_predicted_rows(planar: bool) -> None:
    for photometric, bits, order in itertools.product((1, 2), (8, 16), "<>"):
        values = drawn(COLORS[photometric], bits)
        found = outcome(picture(values, bits, photometric, planar=planar, compression=DEFLATE, predictor=True, order=order))  # fmt: skip  # noqa: E501
        assert is_right(found, np.broadcast_to(values >> (bits - 8), (HEIGHT, WIDTH, 3)), 0)


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_cielab(compression: int) -> None:
    """L in 0..255 for 0..100, a and b signed (TIFF 6.0, section 23), to sRGB by way of XYZ under D50 (CIE 15)."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(60, 200, (HEIGHT, WIDTH)), *rng.integers(-15, 16, (2, HEIGHT, WIDTH))], -1)
    y = (values[..., 0] / 2.55 + 16) / 116
    parts = np.stack([y + values[..., 1] / 500, y, y - values[..., 2] / 200], -1)
    xyz = np.where(parts > 6 / 29, parts**3, 3 * (6 / 29) ** 2 * (parts - 4 / 29)) * (0.96422, 1, 0.82521)
    to_srgb = [[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]]
    linear = xyz @ np.transpose(to_srgb)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    found = outcome(picture(values % 256, 8, 8, compression=compression))
    assert is_right(found, np.clip(srgb, 0, 1) * 255, 5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"photometric": 5, "more": {332: (SHORT, (2,))}}, "inks other than CMYK"),
        ({"photometric": 6, "more": {530: (SHORT, (2, 2))}}, "8-bit subsampled YCbCr"),
        ({"photometric": 6}, "8-bit subsampled YCbCr"),  # as it is where no tag says otherwise
        ({"photometric": 2, "more": {50706: (SHORT, (1, 4, 0, 0))}}, "camera raw (DNG)"),
        ({"photometric": 32803}, "8-bit color filter array"),
        ({"photometric": 2, "compression": 34712}, "compression JPEG 2000"),
        ({"photometric": 2, "compression": 50001}, "compression WebP"),  # Pillow's libtiff has it in some builds
        ({"photometric": 2, "compression": 34661}, "compression 34661"),
        ({"photometric": 2, "more": {258: (SHORT, (5, 6, 5))}}, "5/6/5-bit RGB"),
        ({"photometric": 2, "more": {277: (SHORT, (2,))}}, "8-bit RGB"),
    ],
)
def test_names_of_other_layouts(options: dict[str, Any], says: str) -> None:
    values = drawn(COLORS.get(options["photometric"], 1), 8)
    assert outcome(picture(values, 8, **options)) == f"TIFF layout is not read: {says}"


def test_no_photometric_interpretation() -> None:
    data = tiff(8, 8, {258: (SHORT, (8,)), 259: (SHORT, (1,)), 277: (SHORT, (1,))}, [bytes(64)])
    assert outcome(data) == "TIFF layout is not read: no photometric interpretation"


@pytest.mark.parametrize("highest", [1, 255, 256, 4095, 4096])
@pytest.mark.parametrize("photometric", [0, 1, 2, 5])
def test_values_of_12_bits_in_16_are_not_shown_black(highest: int, photometric: int) -> None:
    values = np.minimum(drawn(COLORS[photometric], 16), highest)
    for order, compression in itertools.product("<>" if photometric else "<", (NONE, DEFLATE)):
        found = outcome(picture(values, 16, photometric, order=order, compression=compression))
        if highest < 4096:
            assert found == "16-bit pixels below 4096: 12-bit values? scale them to 16 bits"
        else:
            assert is_right(found, shown(values, 16, photometric), 2)
        blank = outcome(picture(values * 0, 16, photometric, order=order, compression=compression))
        assert is_right(blank, shown(values * 0, 16, photometric), 0)


def test_text_where_numbers_belong_has_a_printable_reason() -> None:
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    at = data.index(struct.pack("<HH", 258, 3))  # BitsPerSample, three unsigned shorts
    data[at + 2] = 2  # text
    with pytest.raises(ImageError) as raised:
        decode(bytes(data))
    assert str(raised.value).isprintable()
