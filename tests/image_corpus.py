"""Generated images, good, odd and broken, each with its expected outcome: pixels, or the reason of a refusal.

Lossless pictures carry the pixels they were made from (numpy); lossy ones what Pillow reads in them. Files
are small, and every byte is the same in each run.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112


@dataclass(frozen=True)
class Case:
    """One file: ``pixels`` uint8 (H, W, 3) if it must load, else a part of the expected reason."""

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    reason: str = ""


def good() -> list[Case]:
    """Files that must load, odd as they may be."""
    return [case for case in corpus() if case.pixels is not None]


def broken() -> list[Case]:
    """Files that must be refused."""
    return [case for case in corpus() if case.pixels is None]


def write(folder: Path, cases: list[Case]) -> None:
    """Write cases into an existing folder, under their names."""
    for case in cases:
        (folder / case.name).write_bytes(case.data)


@cache
def corpus() -> tuple[Case, ...]:
    """All cases, names unique."""
    return (
        *_plain(),
        *_jpegs(),
        *_alpha(),
        *_deep(),
        *_containers(),
        *_not_images(),
        *_truncated(),
        *_lying(),
    )


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3): smooth colours with some grain, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """The bytes of a file, written by Pillow."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(image: Image.Image | np.ndarray, format: str, orientation: int, **options: object) -> bytes:
    """A file that asks in its EXIF to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(image, format, exif=exif, **options)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write; ``rows`` are filtered scanlines (W3C PNG, 4 and 5)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name.encode() + body + struct.pack(">I", zlib.crc32(name.encode() + body))
        for name, body in parts.items()
    )


def _seen(name: str, data: bytes) -> Case:
    """A case whose pixels are what Pillow sees."""
    image = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    return Case(name, data, np.asarray(image.convert("RGB")))


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)


def _on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.astype(float)[..., None] / 255
    return np.rint(colour * weight + 255 * (1 - weight)).astype(np.uint8)


def _plain() -> list[Case]:
    sizes = [
        (1, 1),
        (2, 3),
        (1, 40),
        (40, 1),
        (7, 200),
        (333, 250),
        (256, 256),
        (224, 224),
        (255, 257),
        (61, 43),
    ]
    cases = [Case(f"rgb-{h}x{w}.png", encode(photo(h, w), "PNG"), photo(h, w)) for h, w in sizes]
    pixels = photo(43, 61)
    grey = pixels[..., 0]
    few = Image.fromarray(pixels).quantize(16)
    black = grey > 128
    return [
        *cases,
        Case("grey.png", encode(grey, "PNG"), _grey(grey)),
        Case("bilevel.png", encode(Image.fromarray(black), "PNG"), _grey(black * 255)),
        Case("palette.png", encode(few, "PNG"), np.asarray(few.convert("RGB"))),
        Case("rgb.bmp", encode(pixels, "BMP"), pixels),
        Case("bilevel.bmp", encode(Image.fromarray(black), "BMP"), _grey(black * 255)),
        Case("rgb.ppm", encode(pixels, "PPM"), pixels),
        Case("rgb.tif", encode(pixels, "TIFF"), pixels),
        Case("lzw.tif", encode(pixels, "TIFF", compression="tiff_lzw"), pixels),
        Case("lossless.webp", encode(pixels, "WEBP", lossless=True), pixels),
        Case("png-named.jpg", encode(pixels, "PNG"), pixels),
        Case("turned.png", oriented(pixels, "PNG", 6), np.rot90(pixels, -1)),
        Case("turned.tif", oriented(pixels, "TIFF", 8), np.rot90(pixels)),
        Case("trailing-junk.png", encode(pixels, "PNG") + bytes(99), pixels),
    ]


def _jpegs() -> list[Case]:
    pixels = photo(90, 131, seed=1)
    image = Image.fromarray(pixels)
    broken_exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x40\x00" + bytes(range(40))
    return [
        *(_seen(f"exif-{o}.jpg", oriented(pixels, "JPEG", o)) for o in range(1, 9)),
        _seen("progressive.jpg", encode(pixels, "JPEG", progressive=True, quality=60)),
        _seen("444.jpg", encode(pixels, "JPEG", subsampling=0, quality=98)),
        _seen("grey.jpg", encode(image.convert("L"), "JPEG")),
        _seen("cmyk.jpg", encode(image.convert("CMYK"), "JPEG")),
        _seen("rgb-coded.jpg", encode(pixels, "JPEG", keep_rgb=True)),
        _seen("one-wide.jpg", encode(photo(57, 1), "JPEG")),
        _seen("exif-9.jpg", oriented(pixels, "JPEG", 9)),
        Case(
            "broken-exif.jpg",
            encode(pixels, "JPEG", exif=broken_exif),
            _seen("", encode(image, "JPEG")).pixels,
        ),
        _seen("trailing-junk.jpg", encode(pixels, "JPEG") + b"\xff\xd8 more"),
        _seen("two-pictures.mpo", encode(image, "MPO", save_all=True, append_images=[image.rotate(90)])),
    ]


def _alpha() -> list[Case]:
    pixels = photo(43, 61, seed=2)
    alpha = np.linspace(0, 255, 43 * 61).reshape(43, 61).astype(np.uint8)
    rgba, on_white = np.dstack([pixels, alpha]), _on_white(pixels, alpha)
    grey_alpha = np.dstack([pixels[..., 0], alpha])
    few = Image.fromarray(pixels).quantize(8)
    index, colours = np.asarray(few), np.asarray(few.convert("RGB"))
    fades = bytes(range(0, 256, 36))
    key = tuple(int(x) for x in pixels[3, 4])
    same = (pixels == key).all(-1)
    level = int(pixels[3, 4, 0])
    return [
        Case("rgba.png", encode(rgba, "PNG"), on_white),
        Case("rgba.tif", encode(rgba, "TIFF"), on_white),
        Case("rgba.webp", encode(rgba, "WEBP", lossless=True, exact=True), on_white),
        Case(
            "grey-alpha.png",
            encode(Image.fromarray(grey_alpha, "LA"), "PNG"),
            _on_white(_grey(pixels[..., 0]), alpha),
        ),
        Case(
            "fading-palette.png",
            encode(few, "PNG", transparency=fades),
            _on_white(colours, np.frombuffer(fades, np.uint8)[index]),
        ),
        Case("palette-key.png", encode(few, "PNG", transparency=3), _on_white(colours, (index != 3) * 255)),
        Case("palette-key.gif", encode(few, "GIF", transparency=3), _on_white(colours, (index != 3) * 255)),
        Case("colour-key.png", encode(pixels, "PNG", transparency=key), _on_white(pixels, ~same * 255)),
        Case(
            "grey-key.png",
            encode(pixels[..., 0], "PNG", transparency=level),
            _on_white(_grey(pixels[..., 0]), (pixels[..., 0] != level) * 255),
        ),
        Case("invisible.png", encode(np.dstack([pixels, alpha * 0]), "PNG"), np.full_like(pixels, 255)),
    ]


def _deep() -> list[Case]:
    values = np.linspace(0, 65535, 43 * 61).reshape(43, 61).astype(np.uint16)
    grey = _grey(values >> 8)
    colour = np.stack([values, values[::-1], values[:, ::-1]], axis=-1)
    rows = b"".join(b"\x00" + row.tobytes() for row in colour.astype(">u2"))
    key = int(values[5, 5])
    grey_rows = b"".join(b"\x00" + row.tobytes() for row in values.astype(">u2"))
    pgm = b"P5 61 43 65535\n" + values.astype(">u2").tobytes()
    negative = values.astype(np.int32) - 1
    return [
        Case("grey16.png", encode(values, "PNG"), grey),
        Case("rgb16.png", png(61, 43, 16, 2, rows), (colour >> 8).astype(np.uint8)),
        Case(
            "grey16-key.png",
            png(61, 43, 16, 0, grey_rows, tRNS=struct.pack(">H", key)),
            _on_white(grey, (values != key) * 255),
        ),
        Case("grey16.tif", encode(values, "TIFF"), grey),
        Case(
            "grey16-big-endian.tif",
            encode(Image.frombytes("I;16B", (61, 43), values.astype(">u2").tobytes()), "TIFF"),
            grey,
        ),
        Case("grey16.pgm", pgm, grey),
        Case("grey32.tif", encode(values.astype(np.int32), "TIFF"), grey),
        Case("negative.tif", encode(negative, "TIFF"), reason="outside 0..65535"),
        Case("float.tif", encode(values.astype(np.float32), "TIFF"), reason="floating-point"),
    ]


def _containers() -> list[Case]:
    pixels = photo(43, 61, seed=3)
    image = Image.fromarray(pixels)
    other = [Image.fromarray(photo(43, 61, seed=4))]
    return [
        _seen("still.gif", encode(image, "GIF")),
        _seen("no-trailer.gif", encode(image, "GIF")[:-1]),
        _seen("animated.gif", encode(image, "GIF", save_all=True, append_images=other)),
        Case("animated.png", encode(image, "PNG", save_all=True, append_images=other), pixels),
        Case("animated.webp", encode(image, "WEBP", save_all=True, append_images=other, lossless=True), pixels),
        Case("pages.tif", encode(image, "TIFF", save_all=True, append_images=other), pixels),
        _seen("lossy.webp", encode(image, "WEBP")),
        _seen("lossy.jp2", encode(image, "JPEG2000", quality_layers=[20])),
        _seen("cmyk.tif", encode(image.convert("CMYK"), "TIFF")),
        _seen("lab.tif", encode(Image.frombytes("LAB", (61, 43), pixels.tobytes()), "TIFF")),
        _seen("ycbcr.tif", encode(image.convert("YCbCr"), "TIFF")),
        _seen("jpeg.tif", encode(image, "TIFF", compression="jpeg")),
    ]


def _not_images() -> list[Case]:
    noise = np.random.default_rng(5).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    return [
        Case("empty.jpg", b"", reason="empty file"),
        Case("noise.jpg", noise, reason="not an image"),
        Case("zeros.png", bytes(3000), reason="not an image"),
        Case("page.jpg", b"<!doctype html><html><body>404 not found</body></html>", reason="not an image"),
        Case(
            "drawing.png",
            b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            reason="not an image",
        ),
        Case("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reason="not an image"),
        Case("document.jpg", b"%PDF-1.7\n1 0 obj\n", reason="not an image"),
        Case("signature-only.jpg", b"\xff\xd8\xff", reason="header"),
        Case("signature-only.png", b"\x89PNG\r\n\x1a\n", reason="header"),
    ]


def _truncated() -> list[Case]:
    image = Image.fromarray(photo(43, 61, seed=6))
    halves = [
        ("half.jpg", encode(image, "JPEG", quality=98), "truncated JPEG"),
        ("half.png", encode(image, "PNG"), "truncated PNG"),
        ("half.gif", encode(image, "GIF"), "truncated GIF"),
        ("half.webp", encode(image, "WEBP"), "truncated WEBP"),
        ("half.bmp", encode(image, "BMP"), "truncated BMP"),
        ("half.tif", encode(image, "TIFF"), "truncated TIFF"),
        ("half.ppm", encode(image, "PPM"), "truncated PPM"),
        ("half.jp2", encode(image, "JPEG2000"), "truncated JPEG2000"),
    ]
    jpeg = encode(image, "JPEG")
    frames = encode(image, "GIF", save_all=True, append_images=[image.rotate(90)])
    return [
        *(Case(name, data[: len(data) // 2], reason=reason) for name, data, reason in halves),
        Case("no-end-marker.jpg", jpeg[:-2], reason="truncated JPEG"),
        Case("zero-tail.jpg", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), reason="JPEG"),
        Case("progressive-cut.jpg", encode(image, "JPEG", progressive=True)[:-40], reason="truncated JPEG"),
        Case("no-end-chunk.png", encode(image, "PNG")[:-12], reason="truncated PNG"),
        Case("second-frame-cut.gif", frames[:-50], reason="truncated GIF"),
        Case("no-codestream.jp2", encode(image, "JPEG2000")[:212], reason="truncated JPEG2000"),
    ]


def _lying() -> list[Case]:
    """Headers that claim what the file does not hold, and flipped bits that a checksum reveals."""
    pixels = photo(43, 61, seed=7)
    whole_png, jpeg, tif = encode(pixels, "PNG"), encode(pixels, "JPEG"), encode(pixels, "TIFF")
    gif, bmp = encode(pixels, "GIF"), encode(pixels, "BMP")
    middle = len(whole_png) // 2
    size_at = jpeg.index(b"\xff\xc0") + 5
    height_at = tif.index(struct.pack("<HHII", 257, 4, 1, 43)) + 8  # tag 257, one LONG
    progressive = encode(photo(1000, 1000), "JPEG", progressive=True, quality=5)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    limit = "more"
    return [
        Case(
            "flipped-bit.png",
            _patched(whole_png, middle, bytes([whole_png[middle] ^ 1])),
            reason="corrupt PNG",
        ),
        Case("bomb.png", png(60000, 60000, 8, 2, b""), reason=limit),
        Case("under-pillows-limit.png", png(13000, 13000, 8, 2, b""), reason=limit),
        Case("no-pixels.png", png(9000, 9000, 8, 2, b""), reason="PNG"),
        Case("wide-claim.jpg", _patched(jpeg, size_at, struct.pack(">HH", 43, 65000)), reason="truncated JPEG"),
        Case("bomb.jpg", _patched(jpeg, size_at, struct.pack(">HH", 65500, 65500)), reason=limit),
        Case("strips-missing.tif", _patched(tif, height_at, struct.pack("<I", 4300)), reason="truncated TIFF"),
        Case("long-side.png", png(70000, 3, 8, 2, b""), reason="on a side"),
        Case("bomb.gif", _patched(gif, 6, struct.pack("<HH", 65535, 65535)), reason=limit),
        Case("bomb.bmp", _patched(bmp, 18, struct.pack("<ii", 60000, 60000)), reason=limit),
        Case("bomb.ppm", b"P6 99999 99999 255\n", reason=limit),
        Case("many-scans.jpg", progressive[:-2] + last_scan * 3000 + b"\xff\xd9", reason="scans, too many"),
    ]


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]
