"""Mutated images: the n-th is always the same, so a report needs only the number."""

import random
import struct
import zlib
from functools import cache

from PIL import Image

from tests.image_corpus import corpus, encode, oriented, photo

MAX_BYTES = 20_000
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@cache
def originals() -> tuple[bytes, ...]:
    """Return small files in every format: the corpus, and tiny images, where a mutation is likely to have an effect."""
    tiny = Image.fromarray(photo(9, 12))
    options: list[tuple[str, dict[str, object]]] = [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {"interlace": 1}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
        ("AVIF", {}),
    ]
    fax = encode(tiny.convert("1"), "TIFF", compression="group4")
    pictures = [encode(tiny, format, **chosen) for format, chosen in options]
    turned = [oriented(tiny, format, 6) for format in ("JPEG", "PNG", "TIFF", "WEBP")]
    return (
        *(case.data for case in corpus() if 0 < len(case.data) <= MAX_BYTES),
        *pictures * 3,  # as many as half of the corpus
        *turned,
        fax,
        encode(tiny, "AVIF", save_all=True, append_images=[tiny.rotate(90)]),
    )


def mutant(number: int) -> bytes:
    """Return the ``number``-th mutated file."""
    draw = random.Random(number)
    data = bytearray(draw.choice(originals()))
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        draw.choice(MUTATIONS)(data, draw)
    if data.startswith(b"\x89PNG") and draw.random() < 0.7:  # otherwise a checksum rejects nearly all of them
        data = bytearray(with_checksums(bytes(data)))
    return bytes(data)


def flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 8)):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def set_bytes(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 4)):
        if data:
            data[draw.randrange(len(data))] = draw.randrange(256)


def set_header(data: bytearray, draw: random.Random) -> None:
    """Make a number near the start extreme: sizes, counts and offsets are there."""
    at = draw.randrange(min(len(data), 120) or 1)
    kind = draw.choice(("<H", ">H", "<I", ">I"))
    data[at : at + struct.calcsize(kind)] = struct.pack(kind, draw.choice(EXTREMES) % (256 ** struct.calcsize(kind)))


def truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data) or 1) :]


def cut_out(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) or 1)
    del data[at : at + draw.randint(1, 64)]


def repeat(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) or 1)
    data[at:at] = data[at : at + draw.randint(1, 64)] * draw.randint(1, 20)


def splice(data: bytearray, draw: random.Random) -> None:
    other = draw.choice(originals())
    data[draw.randrange(len(data) or 1) :] = other[draw.randrange(len(other)) :]


def insert_from_another(data: bytearray, draw: random.Random) -> None:
    other, at = draw.choice(originals()), draw.randrange(len(data) or 1)
    start = draw.randrange(len(other))
    data[at:at] = other[start : start + draw.randint(1, 256)]


MUTATIONS = (flip_bits, set_bytes, set_header, truncate, cut_out, repeat, splice, insert_from_another)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with every checksum corrected, as far as its chunks can be parsed."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        parts += [data[at:end], struct.pack(">I", zlib.crc32(data[at + 4 : end]))]
        at = end + 4
    return b"".join([*parts, data[at:]])
