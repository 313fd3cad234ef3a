"""What lies in a folder: images, folders, and everything that is left out, none of it opened."""

import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from transferkit.images.decoding import EXTENSIONS, UNREAD_KINDS

IMAGE_SUFFIXES = tuple(f".{extension}" for extensions in EXTENSIONS.values() for extension in extensions)

# Folders that link to one another are reached by more paths than could ever be walked.
MOST_VISITS = 64


class Found(NamedTuple):
    """Relative posix paths, in no particular order.

    Attributes:
        images: regular files, and links that lead nowhere, with an image's extension.
        folders: all folders below the root; those that could not be read too.
        closed: folders that could not be read (the root is ""), each with the system's reason.
        loops: links to a folder that they lie in, not followed.
        special: pipes, sockets and devices.
        others: files, and links that lead nowhere, without an image's extension.
    """

    images: list[str]
    folders: list[str]
    closed: list[tuple[str, str]]
    loops: list[str]
    special: list[str]
    others: list[str]


def walk(root: Path) -> Found:
    """Everything below a folder but hidden files and ``__MACOSX``; links are followed, loops not."""
    found = Found([], [], [], [], [], [])
    visits: Counter[tuple[int, int]] = Counter()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        name, above = pending.pop()
        place = root / name
        try:
            status = place.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                found.loops.append(name)
                continue
            visits[identity] += 1
            if visits[identity] > MOST_VISITS:
                raise OSError(f"reached by more than {MOST_VISITS} links")
            found.folders.append(name)
            with os.scandir(place) as entries:
                for entry in entries:
                    path = f"{name}/{entry.name}" if name else entry.name
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    kind = _kind(entry)
                    if kind == stat.S_IFDIR:
                        pending.append((path, above | {identity}))
                    elif kind != stat.S_IFREG:
                        found.special.append(path)
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        found.images.append(path)
                    else:
                        found.others.append(path)
        except OSError as error:
            found.closed.append((name, (error.strerror or str(error)).lower()))
    found.folders[:1] = []  # the root itself
    return found


def picture_kind(path: str) -> str | None:
    """What kind of picture a file is that is left out although it is one, by its extension; None for other files."""
    return UNREAD_KINDS.get(path.rpartition(".")[2].lower()) if "." in path else None


def _kind(entry: os.DirEntry[str]) -> int:
    """File type of what an entry leads to; a link to nowhere counts as a file, and so as a broken image."""
    if entry.is_dir(follow_symlinks=False):  # known from the scan: no further call per file
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return stat.S_IFREG
