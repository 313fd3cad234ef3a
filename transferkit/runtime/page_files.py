"""Where an HTML page may be written: a page that was written before is replaced, nothing else is."""

from pathlib import Path

from transferkit.runtime.files import check_folder, check_place

MARK = b"img-src data:"
"""Of the content security policy in every page, within its first bytes."""
START = 4096


def check_page_place(path: str | Path) -> None:
    """Refuse to write a page over anything but a page.

    Raises:
        UserError: the file has other content, or cannot be created.
    """
    check_folder(Path(path).parent)
    check_place(path, "a page", foreign)


def foreign(place: Path) -> str | None:
    """Return what tells a file from a page, or ``None`` if it is one, or empty."""
    if not place.is_file():
        return None  # a folder or a device: writing says so
    with place.open("rb") as file:
        start = file.read(START)
    return None if not start or MARK in start else "no content security policy of a page"
