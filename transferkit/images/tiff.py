"""TIFF: the layouts of pixels that are known to be read correctly; others are refused.

Pillow opens more layouts than it reads correctly, silently: 16-bit samples where 0 is white become a negative, planar
16-bit ones noise, signed ones unsigned, 12-bit ones nearly black. So the tags are read here first (TIFF 6.0), and
compared with a table; for each of its lines a test compares pixels with computed ones.
"""

from io import BytesIO
from typing import Any, NamedTuple

from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

from transferkit.images.error import ImageError

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
NAMES = {
    WHITE_IS_ZERO: "white-is-zero",
    BLACK_IS_ZERO: "grayscale",
    RGB: "RGB",
    PALETTE: "palette",
    MASK: "mask",
    CMYK: "CMYK",
    YCBCR: "YCbCr",
    LAB: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "color filter array",
    34892: "linear raw",
}
COLORS = {RGB: 3, CMYK: 4, YCBCR: 3, LAB: 3, 9: 3, 10: 3, 34892: 3}  # samples per pixel; 1 in the others
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
SIGNS = {UNSIGNED: "", SIGNED: " signed", FLOAT: " floating-point"}

# Compressions that Pillow, or the libtiff in it, does not undo; others are told by number.
COMPRESSIONS = {34712: "JPEG 2000", 34887: "LERC", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}
# (photometric interpretation, bits per sample, sample format)
READ = {
    *((gray, bits, UNSIGNED) for gray in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 16)),
    *((BLACK_IS_ZERO, *depth) for depth in ((12, UNSIGNED), (32, UNSIGNED), (32, SIGNED))),
    *((PALETTE, bits, UNSIGNED) for bits in (1, 2, 4, 8)),
    *((RGB, bits, UNSIGNED) for bits in (8, 16)),
    *((CMYK, bits, UNSIGNED) for bits in (8, 16)),
    (YCBCR, 8, UNSIGNED),
    (LAB, 8, UNSIGNED),
}
# Bits stored from the low end of each byte, without compression: (photometric interpretation, bits per sample).
READ_REVERSED = {(0, 1), (0, 2), (0, 4), (1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (RGB, 8), (PALETTE, 8)}
READ_REVERSED_COMPRESSED = {*READ_REVERSED, (0, 8), (PALETTE, 1), (PALETTE, 2), (PALETTE, 4)}


class Layout(NamedTuple):
    """How the pixels of the first picture are stored.

    Attributes:
        photometric: meaning of a value; ``WHITE_IS_ZERO``, ``RGB``, ...
        bits: of each sample of a pixel, of color and extra ones.
        sample_format: ``UNSIGNED``, ``SIGNED``, ``FLOAT``, or another number.
        extra: meaning of the samples beyond the color: 0 unspecified, 1 premultiplied alpha, 2 alpha.
        planar: whether the colors are stored one after the other.
        reversed: whether the low bit of a byte comes first.
        compressed: whether there is any compression.
        subsampled: whether there are fewer values of Cb and Cr than of Y.
        problem: another reason why it is not read, or "".
    """

    photometric: int
    bits: tuple[int, ...]
    sample_format: int
    extra: tuple[int, ...]
    planar: bool
    reversed: bool
    compressed: bool
    subsampled: bool
    problem: str

    def __str__(self) -> str:
        """Return a description such as ``16-bit planar RGB``."""
        bits = "/".join(map(str, self.bits if len(set(self.bits)) > 1 else self.bits[:1]))
        sign = SIGNS.get(self.sample_format, " unknown-format")
        name = NAMES.get(self.photometric, f"photometric {self.photometric}")
        ways = {"planar": self.planar, "bit-reversed": self.reversed, "subsampled": self.subsampled}
        shown = "".join(f" {way}" for way, is_so in ways.items() if is_so)
        return f"{bits}-bit{sign}{shown} {name}{' with extra samples' if self.extra else ''}"


def layout_of(data: bytes) -> Layout | None:
    """Return the layout of a TIFF; None for other bytes, and for broken tags, which its decoder then reports."""
    if data[:4] not in PREFIXES:
        return None
    try:
        tags = ImageFileDirectory_v2(data[:16] if data[2] == 43 or data[3] == 43 else data[:8])  # 43: BigTIFF
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return read_layout(tags)
    except Exception:  # the reader of tags raises exceptions of any type on broken ones
        return None


def check(layout: Layout) -> None:
    """Raise if a layout is not known to be read correctly.

    Raises:
        ImageError: it is not; with its description.
    """
    if layout.sample_format == FLOAT:
        raise ImageError("unsupported_pixels", "floating-point pixels")
    if layout.problem or not is_read(layout):
        raise unread(layout)


def unread(layout: Layout) -> ImageError:
    """Return the error for a layout that is not read."""
    return ImageError("unsupported_pixels", f"TIFF layout is not read: {layout.problem or layout}")


def read_layout(tags: Any) -> Layout:
    """Return the layout that the tags of a TIFF describe."""
    compression = number(tags.get(259, 1))
    bits = numbers(tags.get(258, (1,)))
    old_jpeg = compression == 6  # its tags are often missing
    photometric = number(tags.get(262, YCBCR if old_jpeg else -1))
    if photometric == -1 and bits == (1,):
        photometric = WHITE_IS_ZERO  # fax machines omit it
    samples = number(tags.get(277, COLORS.get(photometric, 1) if compression in (6, 7) else 1))
    bits = bits[:samples] if len(bits) > 1 else bits * min(samples, 64)
    formats = set(numbers(tags.get(339, (UNSIGNED,))))
    subsampled = compression not in (6, 7) and photometric == YCBCR and numbers(tags.get(530, (2, 2))) != (1, 1)
    problem = ""
    if 50706 in tags:  # DNGVersion
        problem = "camera raw (DNG)"
    elif compression in COMPRESSIONS or compression not in COMPRESSION_INFO:
        problem = f"compression {COMPRESSIONS.get(compression, compression)}"
    elif photometric == -1:
        problem = "no photometric interpretation"
    elif photometric == CMYK and number(tags.get(332, 1)) != 1:
        problem = "inks other than CMYK"
    return Layout(
        photometric=photometric,
        bits=bits,
        sample_format=formats.pop() if len(formats) == 1 else 0,
        extra=numbers(tags.get(338, ())),
        planar=number(tags.get(284, 1)) == 2,
        reversed=number(tags.get(266, 1)) == 2,
        compressed=compression != 1,
        subsampled=subsampled,
        problem=problem,
    )


def number(value: Any) -> int:
    """Return the number in a tag, which may be a tuple of one.

    >>> number((8,)), number(8)
    (8, 8)
    """
    return int(value[0] if isinstance(value, tuple) else value)


def numbers(value: Any) -> tuple[int, ...]:
    """Return the numbers in a tag; ``ValueError`` for text, which a broken file may have there.

    >>> numbers((8, 8)), numbers(8)
    ((8, 8), (8,))
    """
    return tuple(map(int, value if isinstance(value, tuple) else (value,)))


def is_read(layout: Layout) -> bool:
    """Return whether a layout is known to be read correctly."""
    photometric, bits, extra = layout.photometric, layout.bits[0] if layout.bits else 0, layout.extra
    colors = COLORS.get(photometric, 1)
    # libtiff, and programs that write such files, treat an undescribed fourth sample of RGB as alpha.
    implied_alpha = photometric == RGB and len(layout.bits) == 4 and not extra
    if len(layout.bits) != colors + len(extra) + implied_alpha or len(set(layout.bits)) != 1:
        return False
    if (photometric, bits, layout.sample_format) not in READ:
        return False
    if extra and not is_extra_read(layout, bits):
        return False
    if layout.planar and not layout.compressed:  # Pillow reads each plane by the first letter of its raw mode
        plain = extra in ((), (2,)) and not layout.reversed and photometric in (BLACK_IS_ZERO, RGB, CMYK, LAB)
        if bits != 8 or not plain or (photometric == BLACK_IS_ZERO and extra):
            return False
    reversible = READ_REVERSED_COMPRESSED if layout.compressed else READ_REVERSED
    if layout.reversed and ((photometric, bits) not in reversible or extra):
        return False
    return layout.compressed or not layout.subsampled


def is_extra_read(layout: Layout, bits: int) -> bool:
    """Return whether samples beyond the color are known to be read correctly."""
    match layout.photometric:
        case 1:  # grayscale
            return bits == 8 and layout.extra in ((0,), (2,)) and not layout.planar
        case 2:  # RGB
            first, others = layout.extra[0], set(layout.extra[1:])
            room = 3 if bits == 8 else 1
            return first in (0, 1, 2) and others <= {0} and len(layout.extra) <= room and not (layout.planar and others)
        case 5:  # CMYK
            return bits == 8 and set(layout.extra) == {0} and len(layout.extra) <= 2
    return False
