"""Contents of a folder: images, folders, and everything that is left out; no file is opened."""

import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from transferkit.images.error import Fault
from transferkit.images.formats import SUFFIXES, UNREAD_KINDS

# Folders that link to one another can be reached by more paths than could ever be walked.
MOST_VISITS = 64


class Listing(NamedTuple):
    """Relative POSIX paths, in no particular order.

    Attributes:
        images: regular files, and links whose target is missing, with an image's extension.
        folders: all folders below the root, including those that cannot be read.
        closed: folders that cannot be read (the root is ""), each with the reason.
        loops: links to a folder that contains them, not followed.
        special: pipes, sockets and devices.
        others: files, and links whose target is missing, without an image's extension.
    """

    images: list[str]
    folders: list[str]
    closed: list[tuple[str, Fault]]
    loops: list[str]
    special: list[str]
    others: list[str]


def walk(root: Path) -> Listing:
    """List everything below a folder but hidden files and ``__MACOSX``; links are followed, loops are not."""
    found = Listing([], [], [], [], [], [])
    visits: Counter[tuple[int, int]] = Counter()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        name, above = pending.pop()
        folder = root / name
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                found.loops.append(name)
                continue
            visits[identity] += 1
            if visits[identity] > MOST_VISITS:
                raise OSError(f"reached by more than {MOST_VISITS} links")
            found.folders.append(name)
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = f"{name}/{entry.name}" if name else entry.name
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    kind = file_type(entry)
                    if kind == stat.S_IFDIR:
                        pending.append((path, above | {identity}))
                    elif kind != stat.S_IFREG:
                        found.special.append(path)
                    elif entry.name.lower().endswith(SUFFIXES):
                        found.images.append(path)
                    else:
                        found.others.append(path)
        except OSError as error:
            found.closed.append((name, Fault.of(error)))
    found.folders[:1] = []  # the root itself
    return found


def picture_kind(path: str) -> str | None:
    """Return the kind of a picture whose extension says that it is never read; None for other files."""
    return UNREAD_KINDS.get(path.rpartition(".")[2].lower()) if "." in path else None


def file_type(entry: os.DirEntry[str]) -> int:
    """Return the file type of an entry's target; a link whose target is missing counts as a (broken) file."""
    if entry.is_dir(follow_symlinks=False):  # known from the scan: no further call per file
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return stat.S_IFREG
