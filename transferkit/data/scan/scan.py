"""The scan itself: list everything, look at every image once, ask every rule."""

import os
from pathlib import Path

from transferkit.data.decoding import each, recall
from transferkit.data.manifest import MANIFEST_SUFFIXES
from transferkit.data.scan import rules
from transferkit.data.scan.files import Look, fault, look, oddities, stray
from transferkit.data.scan.findings import Finding, Report, report
from transferkit.data.sources import (
    DIGITS,
    ImageTable,
    arrange,
    check_image_root,
    open_images,
    table_of,
    table_of_manifest,
)
from transferkit.data.walk import walk
from transferkit.errors import UserError


def scan(source: str | Path, workers: int | None = None, image_root: str | Path | None = None) -> Report:
    """Find what would stop or spoil training on some images, and what is odd about them.

    What would stop a fit at its first fault is collected here. Every image is read once and decoded in full
    unless it is remembered; fit, embed and probe in turn rely on that memory.

    Args:
        source: what :func:`~transferkit.data.sources.open_images` opens.
        workers: threads; one a core if ``None``. The report does not depend on it.
        image_root: as of :func:`~transferkit.data.sources.open_images`.

    Raises:
        UserError: there is nothing to scan: no such place, no image, or an unreadable manifest.
    """
    table, found = listing(source, image_root)
    if not len(table) and not any(finding.severity == "error" or finding.kind == "no-extension" for finding in found):
        raise UserError(f"no images in {str(source)!r}; it needs files such as .jpg or .png, or class folders")
    looks = look_at_all(table, workers)
    for path, seen in looks.items():
        if seen.reason is not None:
            found.append(fault(path, seen.reason, Path(table.root, path).is_symlink()))
        elif seen.header is not None:
            found += oddities(path, seen.header)
    found += rules.copies(table, {path: seen.sha256 for path, seen in looks.items() if seen.sha256})
    if len(table) and not any(finding.kind == "untrainable" for finding in found):
        found += rules.classes(table)
    found += rules.names([*table.paths, *table.empty])
    return report(table, found)


def look_at_all(table: ImageTable, workers: int | None) -> dict[str, Look]:
    """Path -> what was seen of it; nothing for built-in images, which have no files."""
    if table.root == DIGITS:
        return {}
    known = recall(table)
    good = {path for path, reason in known.items() if reason is None}

    def see(row: int) -> Look:
        path = table.paths[row]
        return look(Path(table.root, path), decoded=path in good)

    return each(table, range(len(table)), see, lambda seen: seen.reason, workers)


def listing(source: str | Path, image_root: str | Path | None = None) -> tuple[ImageTable, list[Finding]]:
    """The images of a source, and what was found wrong while listing them.

    Raises:
        UserError: see :func:`scan`.
    """
    place = Path(source).expanduser()
    if place.is_dir() and image_root is None:
        return list_folder(place)
    if place.is_file() and place.suffix.lower() in MANIFEST_SUFFIXES:
        faults: list[str] = []
        if image_root is not None:
            check_image_root(image_root, source, is_manifest=True)
        table = table_of_manifest(place, str(source), image_root, faults)
        return table, [Finding("faulty-row", place.name, line) for line in faults]
    return open_images(source, image_root), []


def list_folder(folder: Path) -> tuple[ImageTable, list[Finding]]:
    """The images of a folder, and what is wrong with it beside them."""
    seen = walk(folder)
    found = [Finding(closed_kind(why), name or ".", why) for name, why in seen.closed]
    found += [Finding("left-out", path, "link to a folder that it lies in") for path in seen.loops]
    found += [Finding("left-out", path, "pipe, socket or device") for path in seen.special]
    found += filter(None, (stray(folder, path) for path in seen.others))
    found += [Finding("name-not-utf8", path) for path in [*seen.images, *seen.folders] if not is_utf8(path)]
    images = [path for path in seen.images if is_utf8(path)]
    unread = {name for name, _ in seen.closed}
    folders = [name for name in seen.folders if is_utf8(name) and name not in unread]
    try:
        return arrange(folder, images, folders), found
    except UserError as error:  # class folders beside splits: which label is meant cannot be known
        rows = [(path, None, None) for path in images]
        return table_of(str(folder.resolve()), rows, str(folder)), [*found, Finding("untrainable", ".", str(error))]


def closed_kind(reason: str) -> str:
    """The kind of a folder that cannot be read."""
    return "permission-denied" if reason == "permission denied" else "unreadable-folder"


def is_utf8(path: str) -> bool:
    """Whether a name can be written in UTF-8; the system's other bytes are lone surrogates in it."""
    try:
        return bool(os.fsencode(path).decode())
    except UnicodeDecodeError:
        return False
