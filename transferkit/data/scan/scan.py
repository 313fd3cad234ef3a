"""The scan itself: list everything, look at every image once, apply every rule."""

import os
from pathlib import Path

from transferkit.data.image_table import (
    ImageTable,
    arrange,
    check_image_root,
    open_images,
    root_of_manifest,
    table_of,
    table_of_columns,
)
from transferkit.data.integrity import each, recall
from transferkit.data.listing import walk
from transferkit.data.manifest import MANIFEST_SUFFIXES, kind_of, read_columns
from transferkit.data.scan import rules
from transferkit.data.scan.file_findings import Look, finding_of, ignored, look, oddities, stray
from transferkit.data.scan.findings import Finding, Report, report
from transferkit.data.targets import TARGETS
from transferkit.errors import UserError


def scan(
    source: str | Path, workers: int | None = None, image_root: str | Path | None = None, multilabel: bool | None = None
) -> Report:
    """Find what would stop or spoil training on some images, and what is odd about them.

    A fit stops at the first fault; a scan collects all. Every image is read once, and decoded in full unless it is
    remembered; fit, embed and probe use that memory too.

    Args:
        source: what :func:`~transferkit.data.image_table.open_images` opens.
        workers: threads; by default one per core. The report does not depend on it.
        image_root: the folder that a manifest's paths are relative to, or lie in; by default its own.
        multilabel: whether a manifest's label is several; None takes lists alone for several.

    Raises:
        UserError: the source does not exist, has no image, or is an unreadable manifest.
    """
    table, found, others = listing(source, image_root, multilabel)
    if not len(table) and not any(finding.severity == "error" or finding.kind == "no-extension" for finding in found):
        raise UserError(f"no images in {str(source)!r}; it needs files such as .jpg or .png, or class folders")
    looks = look_at_all(table, workers)
    for path, seen in looks.items():
        if seen.fault is not None:
            found.append(finding_of(path, seen.fault, Path(table.root, path).is_symlink()))
        elif seen.header is not None:
            found += oddities(path, seen.header)
            found += [Finding("blank", path)] if seen.is_blank else []
    found += rules.copies(table, {path: seen.sha256 for path, seen in looks.items() if seen.sha256})
    if len(table) and not any(finding.kind == "untrainable" for finding in found):
        found += rules.classes(table)
    found += rules.groups(table)
    found += rules.names([*table.paths, *table.empty])
    return report(table, found, others)


def look_at_all(table: ImageTable, workers: int | None) -> dict[str, Look]:
    """Return path -> look; empty for built-in images, which have no files."""
    if table.in_memory:
        return {}
    good = {path for path, fault in recall(table).items() if fault is None}

    def see(row: int) -> Look:
        return look(table.file(row), decoded=table.paths[row] in good)

    return each(table, range(len(table)), see, lambda seen: seen.fault, workers)


def listing(
    source: str | Path, image_root: str | Path | None = None, multilabel: bool | None = None
) -> tuple[ImageTable, list[Finding], dict[str, int]]:
    """Return the images of a source, the findings of listing them, and the number of other files by kind.

    Raises:
        UserError: the source does not exist, has no image, or is an unreadable manifest.
    """
    path = Path(source).expanduser()
    if path.is_dir() and image_root is None:
        return list_folder(path)
    if path.is_file() and path.suffix.lower() in MANIFEST_SUFFIXES:
        faults: list[str] = []
        if image_root is not None:
            check_image_root(image_root, source, is_manifest=True)
        kind = kind_of(path, multilabel)
        columns = read_columns(path, faults, image_root, kind)
        found = [Finding("faulty-row", path.name, line) for line in faults]
        labels = set(TARGETS[kind].names(columns.labels))
        found += [Finding("name-unicode", path.name, f"labels {group}") for group in rules.same_letters(labels)]
        return table_of_columns(root_of_manifest(path, image_root), columns, str(source), kind=kind), found, {}
    return open_images(source, image_root, multilabel), [], {}


def list_folder(folder: Path) -> tuple[ImageTable, list[Finding], dict[str, int]]:
    """Return the images of a folder, the findings of listing it, and the number of other files by kind."""
    seen = walk(folder)
    found = [
        Finding("permission-denied" if why.kind == "denied" else "unreadable-folder", name or ".", why.detail)
        for name, why in seen.closed
    ]
    found += [Finding("left-out", path, "link to a folder that contains it") for path in seen.loops]
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
    except UserError as error:  # class folders beside splits: the labels are ambiguous
        rows = [(path, None, None) for path in images]
        found.append(Finding("untrainable", ".", str(error)))
        return table_of(str(folder.resolve()), rows, str(folder)), found, others


def is_utf8(path: str) -> bool:
    """Return whether a name is valid UTF-8; Python represents other bytes as lone surrogates."""
    try:
        return bool(os.fsencode(path).decode())
    except UnicodeDecodeError:
        return False
