"""What lies behind a picture, and what its header claims, says nothing about the picture."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.image_corpus import encode, photo
from tests.images.test_tiff import outcome
from transferkit.images.extent import jpeg_extent

VIDEO = b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(300_000) + b"\xff\xda" * 1000
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("behind", [VIDEO, bytes(5000), b"\r\n", b"\xff\xd8\xff\xe1"], ids=["video", "zeros", "line", "jpeg"])  # fmt: skip  # noqa: E501
def test_bytes_behind_a_picture_change_nothing(format: str, behind: bytes) -> None:
    if format == "JPEG2000" and behind is VIDEO:
        pytest.skip("OpenJPEG takes the video's boxes for its own")
    data = encode(photo(43, 61), format)
    np.testing.assert_array_equal(outcome(data + behind), outcome(data))
    assert not isinstance(outcome(data), str)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM"])
def test_a_cut_picture_is_found_whatever_lies_behind_it(format: str) -> None:
    """In JPEG nothing tells a video from the rest of the picture, so that one is decoded as gray at worst."""
    data = encode(photo(43, 61), format, **({"quality": 98} if format == "JPEG" else {}))
    if format in ("PNG", "GIF"):
        assert isinstance(outcome(data[: len(data) // 2] + VIDEO), str)
    assert outcome(data[: len(data) // 2]) == f"truncated {format}"


@pytest.mark.parametrize("claim", [0, 54, 2, 2**31, 2**32 - 1])
def test_the_size_that_a_bmp_claims_is_not_believed(claim: int) -> None:
    data = bytearray(encode(photo(43, 61), "BMP"))
    data[2:6] = struct.pack("<I", claim)
    np.testing.assert_array_equal(outcome(bytes(data)), photo(43, 61))
    assert outcome(bytes(data[:-300])) == "truncated BMP"


@pytest.mark.parametrize("claim", [0, 4, -2, -1, 1, 100, 2**31, 2**32 - 9])
@pytest.mark.parametrize("how", [{"lossless": True}, {"quality": 80}, {"lossless": True, "xmp": b"<x/>"}], ids=["VP8L", "VP8", "VP8X"])  # fmt: skip  # noqa: E501
def test_the_size_that_a_webp_claims_is_not_believed(claim: int, how: dict[str, Any]) -> None:
    data = encode(photo(43, 61), "WEBP", **how)
    size = struct.pack("<I", claim if claim in (0, 4) else len(data) - 8 + claim if claim < 2**31 else claim)
    for behind in (b"", VIDEO):
        np.testing.assert_array_equal(outcome(data[:4] + size + data[8:] + behind), outcome(data))
    assert outcome(data[:4] + size + data[8 : len(data) // 2]) == "truncated WEBP"


def test_a_gif_ends_at_its_trailer_at_its_end_or_at_what_is_no_block() -> None:
    image = Image.fromarray(photo(43, 61))
    data = encode(image, "GIF", save_all=True, append_images=[image.rotate(90)])
    whole = outcome(data)
    np.testing.assert_array_equal(outcome(data[:-1]), whole)
    np.testing.assert_array_equal(outcome(data[:-1] + bytes(99)), whole)
    assert outcome(data[:-3]) == "truncated GIF"


def test_the_markers_of_a_jpeg() -> None:
    """A thumbnail in the metadata, a video behind it, stuffed bytes and restart markers are no scans of it."""
    thumbnail = encode(photo(20, 30), "JPEG")
    data = encode(photo(243, 261), "JPEG", quality=95, restart_marker_rows=1)
    with_exif = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert jpeg_extent(with_exif + VIDEO) == (len(with_exif), 1, 0xC0, 8)
    progressive = encode(photo(43, 61), "JPEG", progressive=True)
    extent = jpeg_extent(progressive + VIDEO)
    assert (extent.end, extent.scans, extent.frame) == (len(progressive), progressive.count(b"\xff\xda"), 0xC2)
    assert jpeg_extent(data[:-2]).end == len(data) - 2


@pytest.mark.parametrize(("marker", "precision", "says"), [(0xC1, 12, "12-bit JPEG"), (0xC3, 8, "lossless JPEG")])
def test_jpegs_of_other_kinds_are_refused_by_name(marker: int, precision: int, says: str) -> None:
    data = bytearray(encode(photo(43, 61), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    assert outcome(bytes(data)) == f"{says} is not read; convert it to PNG or JPEG"


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpegs(adobe: bool) -> None:
    """All four are stored inverted, by Adobe and by everybody since."""
    y, x = np.mgrid[:64, :64]
    wanted = np.stack([x * 4, y * 4, (x + y) * 2], -1)
    buffer = io.BytesIO()
    Image.fromarray(wanted.astype(np.uint8)).convert("CMYK").save(buffer, "JPEG", quality=98)
    data = buffer.getvalue()
    at = data.index(b"\xff\xee")
    data = data if adobe else data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    found = outcome(data)
    assert np.abs(found - wanted).max() < 6


def test_ycck_jpegs() -> None:
    """Y, Cb and Cr stand for R, G and B, which are 255 less C, M and Y (JFIF's formula; libjpeg.txt on YCCK); these
    and K are stored inverted, as in every CMYK JPEG.
    """
    y, x = np.mgrid[:64, :64]
    ycc = np.stack([40 + x * 2, 110 + y // 2, 140 - y // 2], -1)
    black = 255 - 2 * x // 3
    samples = Image.merge(
        "CMYK", [Image.fromarray((255 - c).astype(np.uint8)) for c in (*ycc.transpose(2, 0, 1), black)]
    )
    data = bytearray(encode(samples, "JPEG", quality=98))
    at = data.index(b"Adobe")
    data[at + 11] = 2  # transform: YCCK
    luma, blue, red = ycc[..., 0], ycc[..., 1] - 128, ycc[..., 2] - 128
    cmy = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], -1)
    wanted = (255 - np.clip(cmy, 0, 255)) * black[..., None] / 255
    assert np.abs(outcome(bytes(data)) - wanted).max() < 8
