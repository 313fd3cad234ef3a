"""The size that JPEG XL, HEIC and AVIF files declare, read before their decoders see them: some decode as they open."""

import re
from collections.abc import Iterator

_ISPE = re.compile(rb"\0\0\0\x14ispe\0\0\0\0(.{4})(.{4})", re.DOTALL)  # ISO 23008-12, 6.5.3: width and height
_JXL_BITS = (9, 13, 18, 30)  # of a side, by its selector (ISO 18181-1, size header)
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the largest picture that a file declares; None if it declares none."""
    codestream = jxl_codestream(data)
    if codestream is not None:
        return jxl_size(codestream)
    sizes = [(int.from_bytes(width), int.from_bytes(height)) for width, height in _ISPE.findall(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def jxl_codestream(data: bytes) -> bytes | None:
    """The beginning of the codestream in a JPEG XL file; None in other files."""
    if data[:2] == b"\xff\x0a":
        return data[:32]
    if data[4:8] != b"JXL ":
        return None
    parts = (part for kind, part in boxes(data) if kind in (b"jxlc", b"jxlp"))
    return b"".join(part[:32] for part in parts)[:32]


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and beginning of each box of a file (ISO 14496-12, 4.2), of a ``jxlp`` without its number."""
    at = 0
    while at + 8 <= len(data):
        size, kind, begin = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
        end = at + size if size else len(data)
        begin += 4 * (kind == b"jxlp")
        yield kind, data[begin : min(end, begin + 32)]
        at = max(end, at + 8)


def jxl_size(codestream: bytes) -> tuple[int, int]:
    """Width and height by the size header of a JPEG XL codestream, whose bits come low ones first."""
    bits = int.from_bytes(codestream[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & (1 << count) - 1, bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(_JXL_BITS[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    over, under = _JXL_RATIOS[ratio - 1]
    return height * over // under, height
