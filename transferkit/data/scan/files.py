"""One image file: why it cannot be used, or what is odd about it."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from transferkit.data.scan.findings import Finding
from transferkit.images import Header, ImageError, decode, inspect, read_file

TINY = 32  # shorter side in pixels: below it, upscaling to a backbone's usual 224 leaves little to see

PLAIN_MODES = ("RGB", "L")
_ENDINGS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "JPEG2000": ("jp2",),
    "AVIF": ("avif",),
}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")

# The first words that stand in the reason why a file cannot be decoded say what kind of fault it is.
_REASONS = {
    "empty file": "zero-byte",
    "truncated": "truncated",
    "permission denied": "permission-denied",
    "more than the limit": "too-large",
    "more pixels than": "too-large",
    "too many for its size": "too-large",
    "floating-point pixels": "unsupported-pixels",
    "32-bit pixels": "unsupported-pixels",
    "too many levels of symbolic links": "broken-link",
}


class Look(NamedTuple):
    """What one look at a file gives.

    Attributes:
        reason: why it cannot be decoded, ``None`` for a good image.
        sha256: of its bytes; "" for a broken one.
        header: of a good image.
    """

    reason: str | None
    sha256: str = ""
    header: Header | None = None


def look(path: Path, decoded: bool) -> Look:
    """Read a file, and decode it unless it is known that this can be done."""
    try:
        data = read_file(path)
        if not decoded:
            decode(data)
        return Look(None, hashlib.sha256(data).hexdigest(), inspect(data))
    except ImageError as error:
        return Look(str(error))


def fault(path: str, reason: str, is_link: bool) -> Finding:
    """The finding for an image that cannot be decoded.

    Args:
        path: as in the finding.
        reason: of :class:`ImageError`.
        is_link: whether the path is a symbolic link.
    """
    if reason == "no such file or directory":
        return Finding("broken-link" if is_link else "missing", path, reason)
    kind = next((kind for words, kind in _REASONS.items() if words in reason), "unreadable")
    return Finding(kind, path, reason)


def oddities(path: str, header: Header) -> list[Finding]:
    """What is worth knowing about a good image."""
    found = []
    if header.frames > 1:
        found.append(Finding("animated", path, f"{header.frames} pictures"))
    if 2 <= header.orientation <= 8:
        found.append(Finding("rotated", path, f"EXIF orientation {header.orientation}"))
    if header.mode not in PLAIN_MODES:
        found.append(Finding("odd-mode", path, f"{header.format} in mode {header.mode}"))
    if min(header.size) < TINY:
        found.append(Finding("tiny", path, f"{header.size[0]} x {header.size[1]} pixels"))
    if path.rpartition(".")[2].lower() not in _ENDINGS[header.format]:
        found.append(Finding("wrong-extension", path, f"it is {header.format}"))
    return found


def stray(root: Path, path: str) -> Finding | None:
    """A file without an image's extension: an image by its first bytes, a link to nowhere, or nothing of interest."""
    try:
        with (root / path).open("rb") as file:
            start = file.read(12)
    except FileNotFoundError:
        return Finding("left-out", path, "link that leads nowhere")
    except OSError as error:
        return Finding("left-out", path, (error.strerror or str(error)).lower())
    is_image = start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
    return Finding("no-extension", path, "it starts as an image does") if is_image else None
