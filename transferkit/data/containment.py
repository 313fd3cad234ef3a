"""Paths that somebody else wrote down, made relative to one folder, out of which none of them may lead."""

import os
from collections.abc import Sequence
from pathlib import Path

_ASKED = 16  # files of a folder, before it is cheaper to list it


class Containment:
    """Turns a manifest's paths into normalised ones inside a folder, or says why not.

    A folder is resolved once, however many images it holds; nor is every file asked whether it is a link: where
    many of one folder are named, its listing says whether there are any.

    Args:
        folder: the folder of the images.
        name: what to call it in messages, if not by its path.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self.root = folder.resolve()
        self.name = name
        self.inside: dict[str, bool] = {}
        self.relative: dict[str, str] = {}  # of folders that were given by absolute paths
        self.looked: dict[str, int] = {}  # how many files of a folder were asked; -1 if none can be a link

    def all(self, paths: Sequence[str | None], reasons: dict[int, str]) -> list[str]:
        """The relative paths, and in ``reasons`` why a position has none."""
        checked = []
        looked = self.looked
        for position, path in enumerate(paths):
            if not path or _may_be_irregular(path) or looked.get(path.rpartition("/")[0]) != -1:
                path, reason = self.one(path or "")
                if reason:
                    reasons[position] = reason
            checked.append(path)
        return checked

    def one(self, path: str) -> tuple[str, str | None]:
        """The path relative to the folder, without ``.`` and ``..``, and a reason if it leads elsewhere."""
        if not path or "\0" in path:
            return path, "the path is empty or no path; give one relative to the manifest"
        relative = self.relative_to_root(path)
        folder = relative.rpartition("/")[0]
        if folder not in self.inside:
            self.inside[folder] = _real(self.root / folder).is_relative_to(self.root)
        leaves = relative.split("/", 1)[0] == ".." or not self.inside[folder]
        if leaves or (self.may_be_link(folder) and self.leads_out(relative)):
            place = f"the {self.name}" if self.name else str(self.root)
            remedy = "; move the image or the manifest, or name the images' folder: --data.image_root DIR"
            return path, f"{path!r} leads out of {place}{remedy}"
        return relative, None

    def relative_to_root(self, path: str) -> str:
        """A path from the root; the folders of an absolute one may be known by several names."""
        place = Path(path)
        if not place.is_absolute():
            return os.path.normpath(path).replace(os.sep, "/")
        folder = str(place.parent)
        if folder not in self.relative:
            self.relative[folder] = os.path.relpath(_real(place.parent), self.root)
        return os.path.normpath(f"{self.relative[folder]}/{place.name}").replace(os.sep, "/")

    def may_be_link(self, folder: str) -> bool:
        """Whether a file of a folder has to be asked; after some of them the folder is."""
        count = self.looked.get(folder, 0)
        if count >= 0:
            self.looked[folder] = count + 1
        if count == _ASKED:
            try:
                with os.scandir(self.root / folder) as entries:
                    links = any(entry.is_symlink() for entry in entries)
            except OSError:  # the folder is not there
                links = False
            if not links:
                self.looked[folder] = -1
        return self.looked[folder] != -1

    def leads_out(self, relative: str) -> bool:
        """Whether a file is a link to a place outside."""
        file = os.path.join(self.root, relative)  # noqa: PTH118  # a Path costs more than the question
        return os.path.islink(file) and not _real(Path(file)).is_relative_to(self.root)  # noqa: PTH114


def _may_be_irregular(path: str) -> bool:
    """Whether a path may be other than what it is normalised to: absolute, or with an empty part, ``.`` or ``..``."""
    dots = path[0] in "./" or path[-1] == "/" or "/." in path or "//" in path or "\0" in path
    return dots or (os.name == "nt" and ("\\" in path or ":" in path))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises for looping links
