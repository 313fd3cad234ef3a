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
from transferkit.images.decoding import Header, decode, inspect, read_file
from transferkit.images.error import Fault, ImageError
from transferkit.images.formats import EXTENSIONS, starts_as_image

TINY = 32  # shorter side in pixels: below it, upscaling to a backbone's usual 224 leaves little to see

LOSSY = 12  # gray levels between the pixels of a blank picture in lossy WebP of quality 50, the worst case

PLAIN_MODES = ("RGB", "L")


OTHER_FILES = {
    "video": "3gp avi flv m4v mkv mov mp4 mpeg mpg mts webm wmv",
    "audio": "aac flac m4a mp3 ogg wav",
    "PDF": "pdf",
    "archive": "7z bz2 gz rar tar tgz xz zip",
}
KIND_BY_EXTENSION = {extension: kind for kind, extensions in OTHER_FILES.items() for extension in extensions.split()}

# Kind of fault -> kind of finding; the others are "unreadable".
FINDING_BY_FAULT = {
    "missing": "missing",
    "denied": "permission-denied",
    "link_loop": "broken-link",
    "empty": "zero-byte",
    "truncated": "truncated",
    "too_large": "too-large",
    "unsupported_pixels": "unsupported-pixels",
    "unsupported_format": "unsupported-format",
    "needs_package": "needs-package",
}


class Look(NamedTuple):
    """Result of one look at a file.

    Attributes:
        fault: why it cannot be decoded, ``None`` for a good image.
        sha256: of its bytes; "" for a broken one.
        header: of a good image.
        is_blank: whether all pixels of a good image have one color.
    """

    fault: Fault | None
    sha256: str = ""
    header: Header | None = None
    is_blank: bool = False


def look(path: Path, decoded: bool) -> Look:
    """Read a file, and decode it unless ``decoded`` says that it is known to be good."""
    try:
        data = read_file(path)
        pixels = None if decoded else decode(data)
        header = inspect(data)
        # Which good images are blank is not remembered; the few that may be are decoded again.
        is_blank = may_be_blank(data, header) and is_one_color(decode(data) if pixels is None else pixels)
        return Look(None, hashlib.sha256(data).hexdigest(), header, is_blank)
    except ImageError as error:
        return Look(error.fault)


def may_be_blank(data: bytes, header: Header) -> bool:
    """Return whether a file could hold a single color: it is small for its size, or its second half compresses well.

    A compressed photograph cannot be compressed further, nor can the grain of an uncompressed one.
    """
    width, height = header.size
    tail = data[len(data) // 2 :][: 2**16]
    return len(data) < 1024 + width * height / 100 or len(zlib.compress(tail, 1)) < len(tail) / 4


def is_one_color(pixels: Tensor) -> bool:
    """Return whether all pixels (3, H, W) are equal, up to the error of a lossy codec."""
    flat = pixels.flatten(1)
    return bool((flat.amax(1) - flat.amin(1) <= LOSSY).all())


def finding_of(path: str, fault: Fault, is_link: bool) -> Finding:
    """Return the finding for an image that cannot be decoded.

    Args:
        path: as in the finding.
        fault: why.
        is_link: whether the path is a symbolic link.
    """
    kind = FINDING_BY_FAULT.get(fault.kind, "unreadable")
    return Finding("broken-link" if kind == "missing" and is_link else kind, path, fault.detail)


def oddities(path: str, header: Header) -> list[Finding]:
    """Return what is worth knowing about a good image, by its header."""
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
    """Return the finding for a file without an image's extension, None if it is nothing of interest."""
    if kind := picture_kind(path):
        return Finding("other-format", path, kind)
    try:
        with (root / path).open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        return Finding("left-out", path, "link whose target is missing")
    except OSError as error:
        return Finding("left-out", path, Fault.of(error).detail)
    return Finding("no-extension", path, "its first bytes are those of an image") if starts_as_image(start) else None


def ignored(paths: Iterable[str]) -> dict[str, int]:
    """Return how many files of each kind are not pictures: by content where it is known, otherwise by extension."""
    endings = (path.rpartition("/")[2].rpartition(".") for path in paths)
    kinds = Counter(
        KIND_BY_EXTENSION.get(ending.lower(), f".{ending.lower()}") if name else "no extension"
        for name, _, ending in endings
    )
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
