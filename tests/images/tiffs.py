"""TIFF files by hand (TIFF 6.0), for layouts that no common writer makes."""

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SHORT, LONG = 3, 4
NONE, DEFLATE = 1, 8
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Tags = dict[int, tuple[int, tuple[int, ...]]]


def tiff(width: int, height: int, tags: Mapping[int, tuple[int, tuple[int, ...]]], strips: list[bytes], order: str = "<") -> bytes:  # fmt: skip  # noqa: E501
    """A file of one picture: tags number -> (type, values), each strip in one piece behind them."""
    entries: Tags = {256: (LONG, (width,)), 257: (LONG, (height,)), **tags}
    entries[279] = (LONG, tuple(map(len, strips)))
    sizes, codes = {SHORT: 2, LONG: 4}, {SHORT: "H", LONG: "I"}

    def raw(tag: int) -> bytes:
        kind, values = entries[tag]
        return struct.pack(order + codes[kind] * len(values), *values)

    entries[273] = (LONG, (0,) * len(strips))
    start = 8 + 2 + 12 * len(entries) + 4
    outside = {tag: raw(tag) for tag in sorted(entries) if sizes[entries[tag][0]] * len(entries[tag][1]) > 4}
    at = start + sum(map(len, outside.values()))
    places = []
    for strip in strips:
        places.append(at)
        at += len(strip)
    entries[273] = (LONG, tuple(places))
    directory, blob = struct.pack(order + "H", len(entries)), b""
    for tag in sorted(entries):
        kind, values = entries[tag]
        value = raw(tag)
        if tag in outside:
            value, blob = struct.pack(order + "I", start + len(blob)), blob + value
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    signature = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return signature + struct.pack(order + "I", 8) + directory + bytes(4) + blob + b"".join(strips)


def stored(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows of samples, each padded to whole bytes, high bits first."""
    if bits in (8, 16, 32):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    rows = values.reshape(len(values), -1)
    binary = (rows[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)  # (H, samples, bits)
    return np.packbits(binary.reshape(len(rows), -1), axis=1).tobytes()


def picture(
    values: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    planar: bool = False,
    compression: int = NONE,
    reversed: bool = False,
    predictor: bool = False,
    extra: tuple[int, ...] = (),
    sample_format: int = 1,
    more: Tags | None = None,
) -> bytes:
    """A file of one strip for each plane.

    Args:
        values: (H, W, samples).
        bits: of each sample.
        photometric: tag 262.
        order: ``<`` or ``>``.
        planar: a strip for each sample.
        compression: ``NONE`` or ``DEFLATE``.
        reversed: low bits first in each byte.
        predictor: differences along each row are stored.
        extra: tag 338.
        sample_format: tag 339.
        more: other tags.
    """
    height, width, samples = values.shape
    tags: Tags = {
        258: (SHORT, (bits,) * samples),
        259: (SHORT, (compression,)),
        262: (SHORT, (photometric,)),
        277: (SHORT, (samples,)),
        278: (LONG, (height,)),
        284: (SHORT, (2 if planar else 1,)),
        339: (SHORT, (sample_format,) * samples),
    }
    tags |= {266: (SHORT, (2,))} if reversed else {}
    tags |= {317: (SHORT, (2,))} if predictor else {}
    tags |= {338: (SHORT, extra)} if extra else {}
    pack: Callable[[bytes], bytes] = zlib.compress if compression == DEFLATE else bytes

    def strip(plane: Any) -> bytes:
        if predictor:
            plane = np.concatenate([plane[:, :1], np.diff(plane, axis=1)], axis=1) % 2**bits
        packed = pack(stored(plane, bits, order))
        return packed.translate(REVERSED) if reversed else packed

    strips = [strip(values[..., index]) for index in range(samples)] if planar else [strip(values)]
    return tiff(width, height, {**tags, **(more or {})}, strips, order)
