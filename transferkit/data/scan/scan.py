"""The scan itself: list everything, look at every image once, ask every rule."""

import os
from pathlib import Path

from transferkit.data.image_table import (
    DIGITS,
    ImageTable,
    arrange,
    check_image_root,
    open_images,
    read_manifest_columns,
    root_of_manifest,
    table_of,
    table_of_columns,
)
from transferkit.data.integrity import each, recall
from transferkit.data.listing import walk
from transferkit.data.manifest import MANIFEST_SUFFIXES
from transferkit.data.scan import rules
from transferkit.data.scan.file_findings import Look, fault, ignored, look, oddities, stray
from transferkit.data.scan.findings import Finding, Report, report
from transferkit.errors import UserError


def scan(source: str | Path, workers: int | None = None, image_root: str | Path | None = None) -> Report:
    """Find what would stop or spoil training on some images, and what is odd about them.

    What would stop a fit at its first fault is collected here. Every image is read once and decoded in full
    unless it is remembered; fit, embed and probe in turn rely on that memory.

    Args:
        source: what :func:`~transferkit.data.image_table.open_images` opens.
        workers: threads; one a core if ``None``. The report does not depend on it.
        image_root: as of :func:`~transferkit.data.image_table.open_images`.

    Raises:
        UserError: there is nothing to scan: no such place, no image, or an unreadable manifest.
    """
    table, found, others = listing(source, image_root)
    if not len(table) and not any(finding.severity == "error" or finding.kind == "no-extension" for finding in found):
        raise UserError(f"no images in {str(source)!r}; it needs files such as .jpg or .png, or class folders")
    looks = look_at_all(table, workers)
    for path, seen in looks.items():
        if seen.reason is not None:
            found.append(fault(path, seen.reason, Path(table.root, path).is_symlink()))
        elif seen.header is not None:
            found += oddities(path, seen.header)
            found += [Finding("blank", path)] if seen.is_blank else []
    found += rules.copies(table, {path: seen.sha256 for path, seen in looks.items() if seen.sha256})
    if len(table) and not any(finding.kind == "untrainable" for finding in found):
        found += rules.classes(table)
    found += rules.names([*table.paths, *table.empty])
    return report(table, found, others)


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


def listing(
    source: str | Path, image_root: str | Path | None = None
) -> tuple[ImageTable, list[Finding], dict[str, int]]:
    """The images of a source, what was found wrong while listing them, and how many other files of a kind there are.

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
        columns = read_manifest_columns(place, image_root, faults)
        found = [Finding("faulty-row", place.name, line) for line in faults]
        labels = {label for label in columns.labels if label is not None}
        found += [Finding("name-unicode", place.name, f"labels {group}") for group in rules.same_letters(labels)]
        return table_of_columns(root_of_manifest(place, image_root), columns, str(source)), found, {}
    return open_images(source, image_root), [], {}


def list_folder(folder: Path) -> tuple[ImageTable, list[Finding], dict[str, int]]:
    """The images of a folder, what is wrong with it beside them, and how many other files of a kind it holds."""
    seen = walk(folder)
    found = [Finding(closed_kind(why), name or ".", why) for name, why in seen.closed]
    found += [Finding("left-out", path, "link to a folder that it lies in") for path in seen.loops]
    found += [Finding("left-out", path, "pipe, socket or device") for path in seen.special]
    strays = {path: stray(folder, path) for path in seen.others}
    found += filter(None, strays.values())
    others = ignored(path for path, finding in strays.items() if finding is None)
    found += [Finding("name-not-utf8", path) for path in [*seen.images, *seen.folders] if not is_utf8(path)]
    images = [path for path in seen.images if is_utf8(path)]
    unread = {name for name, _ in seen.closed}
    folders = [name for name in seen.folders if is_utf8(name) and name not in unread]
    try:
        return arrange(folder, images, folders), found, others
    except UserError as error:  # class folders beside splits: which label is meant cannot be known
        rows = [(path, None, None) for path in images]
        found.append(Finding("untrainable", ".", str(error)))
        return table_of(str(folder.resolve()), rows, str(folder)), found, others


def closed_kind(reason: str) -> str:
    """The kind of a folder that cannot be read."""
    return "permission-denied" if reason == "permission denied" else "unreadable-folder"


def is_utf8(path: str) -> bool:
    """Whether a name can be written in UTF-8; the system's other bytes are lone surrogates in it."""
    try:
        return bool(os.fsencode(path).decode())
    except UnicodeDecodeError:
        return False
