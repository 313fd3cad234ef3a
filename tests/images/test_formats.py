"""Formats that Pillow needs help with, and those that are not read: a name and a remedy, never a crash."""

import sys
import types
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from tests.image_corpus import encode, photo
from tests.images.test_tiff import outcome
from transferkit.images import decoding, formats
from transferkit.images.decoding import EXTENSIONS, decoders, needs_plugin

BOX = b"\0\0\0\x18ftypXXXX\0\0\0\0mif1heic"
HEIC, JXL = BOX.replace(b"XXXX", b"heic") + bytes(64), b"\xff\x0a" + bytes(64)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((BOX.replace(b"XXXX", brand), "HEIF") for brand in (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")),
        (BOX.replace(b"XXXX", b"avif"), "AVIF"),
        (BOX.replace(b"XXXX", b"mif1").replace(b"heic", b"avif"), "AVIF"),
        (BOX.replace(b"XXXX", b"mp42"), None),
        (BOX.replace(b"XXXX", b"qt  "), None),
        (JXL, "JXL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9), "JXL"),
        (b"\xff\xd8\xff\xe0", None),
        (b"", None),
    ],
)
def test_brands_and_signatures(data: bytes, name: str | None) -> None:
    assert needs_plugin(data) == name


@pytest.mark.parametrize(
    ("data", "plugin", "says"),
    [
        (HEIC, "pillow_heif", "HEIC needs the package pillow-heif (pip install pillow-heif)"),
        (JXL, "pillow_jxl", "JPEG XL needs the package pillow-jxl-plugin (pip install pillow-jxl-plugin)"),
    ],
)
def test_what_is_not_installed_is_named(data: bytes, plugin: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, plugin, None)  # importing it fails
    monkeypatch.setitem(sys.modules, f"{plugin}.HeifImagePlugin", None)
    assert outcome(data) == says
    with pytest.raises(decoding.ImageError, match="needs the package"):
        decoding.inspect(data)


def test_avif_where_pillow_was_built_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(20, 30), "AVIF")
    assert not isinstance(outcome(data), str)
    monkeypatch.setattr(features, "check", lambda name: False)
    monkeypatch.setitem(sys.modules, "pillow_avif", None)
    assert outcome(data) == "AVIF needs the package pillow-avif-plugin (pip install pillow-avif-plugin)"


class Opener(ImageFile.ImageFile):
    """Stands for a plugin: opens any HEIC as one red picture."""

    format = "HEIF"

    def _open(self) -> None:
        self._mode, self._size, self.tile = "RGB", (40, 30), []

    def load(self) -> object:
        self.im = Image.new("RGB", self.size, "red").im
        return super().load()


def test_an_installed_plugin_is_imported_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pillow_heif.HeifImagePlugin")
    monkeypatch.setitem(sys.modules, "pillow_heif", types.ModuleType("pillow_heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif.HeifImagePlugin", module)
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN, "HEIF": (Opener, lambda data: data[4:8] == b"ftyp")})
    monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
    np.testing.assert_array_equal(outcome(HEIC), np.full((30, 40, 3), (255, 0, 0)))
    assert decoding.inspect(HEIC)[:3] == ("HEIF", "RGB", (40, 30))


@pytest.mark.parametrize("options", [{}, {"quality": -1}])
def test_heic_itself(options: dict[str, int]) -> None:
    pytest.importorskip("pillow_heif.HeifImagePlugin")
    pixels = photo(48, 64)
    found = outcome(encode(pixels, "HEIF", **options))
    assert not isinstance(found, str) and np.abs(found.astype(int) - pixels).mean() < 8
    exif = Image.Exif()
    exif[0x112] = 6
    turned = outcome(encode(pixels, "HEIF", exif=exif.tobytes()))
    assert not isinstance(turned, str) and np.abs(turned.astype(int) - np.rot90(pixels, -1)).mean() < 8
    assert isinstance(outcome(encode(pixels, "HEIF")[:-200]), str)


def test_jpeg_xl_itself() -> None:
    pytest.importorskip("pillow_jxl")
    pixels = photo(48, 64)
    data = encode(pixels, "JXL", lossless=True)
    np.testing.assert_array_equal(outcome(data), pixels)
    assert isinstance(outcome(data[: len(data) // 2]), str)
    exif = Image.Exif()
    exif[0x112] = 6  # of which JPEG XL takes no notice (ISO 18181-2: the codestream says how it lies)
    np.testing.assert_array_equal(outcome(encode(pixels, "JXL", lossless=True, exif=exif.tobytes())), pixels)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("TGA", encode(photo(20, 30), "TGA")),
        ("ICO", encode(photo(32, 32), "ICO")),
        ("DICOM", bytes(128) + b"DICM" + bytes(99)),
        ("Photoshop", b"8BPS\0\1" + bytes(99)),
        ("OpenEXR", b"\x76\x2f\x31\x01" + bytes(99)),
        ("JPEG-LS", b"\xff\xd8\xff\xf7" + bytes(99)),
        ("QOI", b"qoif" + bytes(99)),
        ("iPhone-optimized PNG (CgBI)", b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI" + bytes(99)),
        ("DDS", encode(photo(20, 30), "DDS")),
        ("PCX", encode(photo(20, 30), "PCX")),
        ("SGI", encode(photo(20, 30), "SGI")),
        ("PFM", b"PF\n1 1\n-1.0\n" + bytes(12)),
        ("PFM", encode(Image.new("F", (3, 3)), "PPM")),
        ("FITS", b"SIMPLE  =                    T" + bytes(99)),
        ("JPEG XR", b"II\xbc\x01" + bytes(99)),
        ("big-endian BigTIFF", b"MM\0\x2b\0\x08" + bytes(99)),
        ("PAM", b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n\0"),
    ],
)
def test_formats_that_are_not_read_are_named(name: str, data: bytes) -> None:
    assert outcome(data) == f"{name} is not read; convert it to PNG or JPEG"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encode(photo(20, 30), "PDF"), "not an image but a PDF; convert its page to PNG or JPEG"),
        (encode(photo(20, 30), "EPS"), "not an image but PostScript; convert it to PNG or JPEG"),
        (b"<!DOCTYPE html>\n<html>404</html>", "not an image but a web page; download the image itself"),
        (b"\n <HTML><body>Login</body></HTML>", "not an image but a web page; download the image itself"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "not an image but a pointer of Git LFS; run git lfs pull",
        ),
    ],
)
def test_what_lies_under_the_name_of_an_image(data: bytes, says: str) -> None:
    assert outcome(data) == says


def test_every_format_that_can_be_opened_has_extensions() -> None:
    assert set(EXTENSIONS) == {*formats.FORMATS, *formats.PLUGINS}
    assert not set(formats.UNREAD_KINDS) & {ending for endings in EXTENSIONS.values() for ending in endings}


def test_what_decoding_depends_on_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of a HEIC must be forgotten when its package is installed."""
    before = decoders()
    monkeypatch.setattr(formats.importlib.metadata, "version", lambda name: f"{name} 9")
    assert decoders() != before and "pillow-heif" in decoders()


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_pictures_the_first_is_taken(format: str) -> None:
    first, second = photo(40, 50, seed=1), photo(40, 50, seed=2)
    options = {"lossless": True} if format == "WEBP" else {}
    several = encode(Image.fromarray(first), format, save_all=True, append_images=[Image.fromarray(second)], **options)
    alone = encode(Image.fromarray(first), "JPEG" if format == "MPO" else format, **options)
    np.testing.assert_array_equal(outcome(several), outcome(alone))
    assert Image.open(BytesIO(several)).n_frames == 2
