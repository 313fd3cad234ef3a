"""Paths of a manifest, made relative to one folder; a path that leads out of it is refused."""

import os
from collections.abc import Sequence
from pathlib import Path

CHECKED = 16  # files of a folder that are checked one by one before the folder is listed, which is then cheaper


class Containment:
    """Normalizer of a manifest's paths: relative to a folder, and inside of it.

    A folder is resolved once, however many images it contains. Files are not all checked for being links: if many
    are in one folder, its listing shows whether there are any.

    Args:
        folder: the folder of the images.
        name: what to call it in messages; by default its path.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self.root = folder.resolve()
        self.name = name
        self.inside: dict[str, bool] = {}
        self.relative: dict[str, str] = {}  # of folders that were given by absolute paths
        self.checked: dict[str, int] = {}  # folder -> how many of its files were checked; -1 if it has no links

    def all(self, paths: Sequence[str | None], reasons: dict[int, str]) -> list[str]:
        """Return the relative paths, and put into ``reasons`` why a position has none."""
        checked = []
        counts = self.checked
        for position, path in enumerate(paths):
            if not path or may_be_irregular(path) or counts.get(path.rpartition("/")[0]) != -1:
                path, reason = self.one(path or "")
                if reason:
                    reasons[position] = reason
            checked.append(path)
        return checked

    def one(self, path: str) -> tuple[str, str | None]:
        """Return the path relative to the folder, without ``.`` and ``..``, and a reason if it leads out of it.

        A link whose target is outside and missing is refused as well, as a broken one: the target may appear later.
        """
        if not path or "\0" in path:
            return path, "the path is empty or not a path; give one relative to the manifest"
        relative = self.relative_to_root(path)
        folder = relative.rpartition("/")[0]
        if folder not in self.inside:
            self.inside[folder] = real(self.root / folder).is_relative_to(self.root)
        upward = relative.split("/", 1)[0] == ".."
        if upward or not self.inside[folder] or (self.may_be_link(folder) and self.leads_out(relative)):
            if not upward and (link := self.broken_link(relative)):
                return path, f"{path!r} is missing: {link!r} is a broken link; restore its target or remove the row"
            place = f"the {self.name}" if self.name else str(self.root)
            remedy = "move the image or the manifest, or give the images' folder as `image_root`"
            return path, f"{path!r} leads out of {place}; {remedy}"
        return relative, None

    def relative_to_root(self, path: str) -> str:
        """Return a path relative to the root; the folder of an absolute one may have several names."""
        full = Path(path)
        if not full.is_absolute():
            return os.path.normpath(path).replace(os.sep, "/")
        folder = str(full.parent)
        if folder not in self.relative:
            self.relative[folder] = os.path.relpath(real(full.parent), self.root)
        return os.path.normpath(f"{self.relative[folder]}/{full.name}").replace(os.sep, "/")

    def may_be_link(self, folder: str) -> bool:
        """Return whether a file of a folder must be checked; after ``CHECKED`` files, list the folder."""
        count = self.checked.get(folder, 0)
        if count >= 0:
            self.checked[folder] = count + 1
        if count == CHECKED:
            try:
                with os.scandir(self.root / folder) as entries:
                    links = any(entry.is_symlink() for entry in entries)
            except OSError:  # the folder does not exist
                links = False
            if not links:
                self.checked[folder] = -1
        return self.checked[folder] != -1

    def leads_out(self, relative: str) -> bool:
        """Return whether a file is a link whose target is outside."""
        file = os.path.join(self.root, relative)  # noqa: PTH118  # a Path costs more than the system call
        return os.path.islink(file) and not real(Path(file)).is_relative_to(self.root)  # noqa: PTH114

    def broken_link(self, relative: str) -> str | None:
        """Return the first link on a path that leads out, if its target is missing."""
        for part in (*list(Path(relative).parents)[-2::-1], Path(relative)):
            link = self.root / part
            if link.is_symlink() and not real(link).is_relative_to(self.root):
                return None if os.path.exists(link) else part.as_posix()  # noqa: PTH110  # Path's may raise
        return None


def may_be_irregular(path: str) -> bool:
    """Return whether normalizing may change a path: it is absolute, or has an empty part, ``.`` or ``..``."""
    dots = path[0] in "./" or path[-1] == "/" or "/." in path or "//" in path or "\0" in path
    return dots or (os.name == "nt" and ("\\" in path or ":" in path))


def real(path: Path) -> Path:
    """Return a path without links; unlike ``Path.resolve`` it does not raise for link loops."""
    return Path(os.path.realpath(path))
