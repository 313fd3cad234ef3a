"""Where the first picture of a file ends, and whether part of it is missing.

Bytes after the picture are ignored: a phone's photograph may have a video there.
"""

import re
from typing import NamedTuple

from PIL import ImageFile

MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no restart marker, stuffing or fill byte (ITU-T T.81, B.1.1)
SOI, TEM, SOS, EOI = 0xD8, 0x01, 0xDA, 0xD9
ARITHMETIC = range(0xC9, 0xD0)
WEBP_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ")


class JpegExtent(NamedTuple):
    """Result of reading the markers of a JPEG.

    Attributes:
        end: where its first picture ends; the length of the file if it has no end marker.
        scans: passes over the pixels.
        frame: the marker that starts the frame and defines the kind of coding; 0 if there is none.
        precision: bits per sample.
    """

    end: int
    scans: int
    frame: int
    precision: int

    @property
    def unread(self) -> str | None:
        """The name of a kind of JPEG that is not read."""
        if self.frame in (0xC3, 0xC7, 0xCB, 0xCF):  # ITU-T T.81, table B.1
            return "lossless JPEG"
        return f"{self.precision}-bit JPEG" if self.frame and self.precision != 8 else None


def jpeg_extent(data: bytes) -> JpegExtent:
    """Read the markers of the first picture, as its decoder does: bytes after it, or in a segment, are skipped."""
    at, scans, frame, precision = 2, 0, 0, 0
    while found := MARKER.search(data, at):
        marker, at = found[0][1], found.end()
        if marker == EOI:
            return JpegExtent(at, scans, frame, precision)
        if marker in (TEM, SOI):
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not frame:
            frame, precision = marker, int.from_bytes(data[at + 2 : at + 3])
        scans += marker == SOS
        at += int.from_bytes(data[at : at + 2])  # the length includes its own two bytes
    return JpegExtent(len(data), scans, frame, precision)


def is_cut(data: bytes, format: str, image: ImageFile.ImageFile) -> bool:
    """Return whether part of the picture is missing in a way that the format's decoder does not detect.

    Args:
        data: the file.
        format: Pillow's name.
        image: as opened; a TIFF before it is decoded, which drops its strips.
    """
    match format:
        case "JPEG":  # Huffman coding needs at least one bit for every 8 x 8 block (ITU-T T.81, annexes F and G)
            extent, (width, height) = jpeg_extent(data), image.size
            return extent.frame not in ARITHMETIC and 8 * extent.end < -(-width // 8) * -(-height // 8)
        case "TIFF":
            return not is_covered(image)
        case "PNG":  # the last chunk, empty, with its checksum
            return b"IEND\xae\x42\x60\x82" not in data
        case "JPEG2000":  # end of codestream: this pair of bytes is not in packet data (ISO 15444-1, B.10.1)
            return b"\xff\xd9" not in data.partition(b"\xff\x93")[2]
        case "GIF":
            return is_gif_cut(data)
        case _:
            return False


def is_covered(image: ImageFile.ImageFile) -> bool:
    """Return whether the strips or tiles of an image add up to it; Pillow leaves missing ones black."""
    boxes = {tile.extents or (0, 0, *image.size) for tile in image.tile}
    width, height = image.size
    return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) >= width * height


def is_gif_cut(data: bytes) -> bool:
    """Return whether a GIF ends inside a block (GIF89a, appendix B); many writers omit the trailer.

    A byte that starts neither a picture nor an extension ends the GIF; other data may follow it.
    """
    at = 13 + color_table_bytes(data[10])
    while data[at : at + 1] in (b"!", b","):
        if data[at] == 0x2C and at + 10 > len(data):
            return True
        # a frame has a descriptor, colors and a code size before its sub-blocks, an extension two bytes
        at += 11 + color_table_bytes(data[at + 9]) if data[at] == 0x2C else 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1  # the empty sub-block that ends a block
    return at > len(data)


def color_table_bytes(flags: int) -> int:
    """Return the size of a color table from the flags of its descriptor.

    >>> color_table_bytes(0x80 | 7), color_table_bytes(7)
    (768, 0)
    """
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0


def webp_end(data: bytes) -> int:
    """Return where the chunks of a WebP end by their own sizes, which may be behind the end of a file that is cut."""
    at = 12
    while data[at : at + 4] in WEBP_CHUNKS:  # each with its size, and a byte more if that is odd (RFC 9649)
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return at


def with_own_size(data: bytes) -> bytes:
    """Return a WebP whose header gives the size of its chunks; other bytes as they are.

    Some programs write another size there, and the decoder would refuse the file.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return data
    own = (min(webp_end(data), len(data)) - 8).to_bytes(4, "little")
    return data if own == data[4:8] else data[:4] + own + data[8:]
