"""One image file: why it cannot be used, or what is odd about it."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from transferkit.data.listing import picture_kind
from transferkit.data.scan.findings import Finding
from transferkit.images.decoding import EXTENSIONS, Header, ImageError, decode, inspect, needs_plugin, read_file

TINY = 32  # shorter side in pixels: below it, upscaling to a backbone's usual 224 leaves little to see

LOSSY = 12  # levels between the pixels of a blank picture in lossy WebP of quality 50, which moves them most

PLAIN_MODES = ("RGB", "L")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")

_OTHER_FILES = {
    "video": "3gp avi flv m4v mkv mov mp4 mpeg mpg mts webm wmv",
    "audio": "aac flac m4a mp3 ogg wav",
    "PDF": "pdf",
    "archive": "7z bz2 gz rar tar tgz xz zip",
}
_KINDS = {ending: kind for kind, endings in _OTHER_FILES.items() for ending in endings.split()}

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
    "16-bit pixels": "unsupported-pixels",
    "TIFF layout": "unsupported-pixels",
    "is not read": "unsupported-format",
    "needs the package": "needs-package",
    "too many levels of symbolic links": "broken-link",
}


class Look(NamedTuple):
    """What one look at a file gives.

    Attributes:
        reason: why it cannot be decoded, ``None`` for a good image.
        sha256: of its bytes; "" for a broken one.
        header: of a good image.
        is_blank: whether all pixels of a good image have one color.
    """

    reason: str | None
    sha256: str = ""
    header: Header | None = None
    is_blank: bool = False


def look(path: Path, decoded: bool) -> Look:
    """Read a file, and decode it unless it is known that this can be done."""
    try:
        data = read_file(path)
        pixels = None if decoded else decode(data)
        header = inspect(data)
        # Which good images are blank is not remembered; the few that may be are decoded again.
        is_blank = may_be_blank(data, header) and is_one_color(decode(data) if pixels is None else pixels)
        return Look(None, hashlib.sha256(data).hexdigest(), header, is_blank)
    except ImageError as error:
        return Look(str(error))


def may_be_blank(data: bytes, header: Header) -> bool:
    """Whether a file could hold a single color: it is minute for its size, or its second half is a repetition.

    What codecs make of a photograph, and the grain of one that is not compressed, cannot be compressed further.
    """
    width, height = header.size
    tail = data[len(data) // 2 :][: 2**16]
    return len(data) < 1024 + width * height / 100 or len(zlib.compress(tail, 1)) < len(tail) / 4


def is_one_color(pixels: Tensor) -> bool:
    """Whether all pixels (3, H, W) are equal, but for what a lossy codec leaves of that."""
    flat = pixels.flatten(1)
    return bool((flat.amax(1) - flat.amin(1) <= LOSSY).all())


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
    """What is worth knowing about a good image, by its header."""
    found = []
    if header.frames > 1:
        found.append(Finding("animated", path, f"{header.frames} pictures"))
    if 2 <= header.orientation <= 8:
        found.append(Finding("rotated", path, f"EXIF orientation {header.orientation}"))
    if header.mode not in PLAIN_MODES:
        found.append(Finding("odd-mode", path, f"{header.format} in mode {header.mode}"))
    if min(header.size) < TINY:
        found.append(Finding("tiny", path, f"{header.size[0]} x {header.size[1]} pixels"))
    if path.rpartition(".")[2].lower() not in EXTENSIONS[header.format]:
        found.append(Finding("wrong-extension", path, f"it is {header.format}"))
    return found


def stray(root: Path, path: str) -> Finding | None:
    """A file without an image's extension: an image by its first bytes, a link to nowhere, or nothing of interest."""
    if kind := picture_kind(path):
        return Finding("other-format", path, kind)
    try:
        with (root / path).open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        return Finding("left-out", path, "link that leads nowhere")
    except OSError as error:
        return Finding("left-out", path, (error.strerror or str(error)).lower())
    is_image = start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP") or needs_plugin(start)
    return Finding("no-extension", path, "it starts as an image does") if is_image else None


def ignored(paths: Iterable[str]) -> dict[str, int]:
    """How many files of each kind are no pictures: by what they hold where that is known, else by extension."""
    endings = (path.rpartition("/")[2].rpartition(".") for path in paths)
    kinds = Counter(
        _KINDS.get(ending.lower(), f".{ending.lower()}") if name else "no extension" for name, _, ending in endings
    )
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
