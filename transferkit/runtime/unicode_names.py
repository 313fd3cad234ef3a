"""Files that are missing under a name, but there under one with the same letters in another Unicode form."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path


def other_form(path: str | Path) -> str:
    """Return what to say of a missing file that is there in another Unicode form (Unicode Annex 15); empty if not.

    Such names look the same: macOS lists accents as characters of their own, other systems as part of their letter.
    """
    missing = Path(path).absolute()
    if str(missing).isascii():
        return ""
    try:
        while not os.path.lexists(missing.parent):
            missing = missing.parent
        found = names_by_form(missing.parent, missing.parent.stat().st_mtime_ns).get(nfc(missing.name))
    except (OSError, ValueError):
        return ""
    if found is None or found == missing.name:
        return ""
    return f", but {found!a} has the letters of {missing.name!a} in another Unicode form; rename one of them"


def nfc(name: str) -> str:
    """Return a name with each letter and its accents as one character where Unicode has it."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=8)  # many files may be missing from one folder
def names_by_form(folder: Path, changed: int) -> dict[str, str]:
    """Return the names in a folder by their NFC form.

    Args:
        folder: that exists.
        changed: its time of modification.

    Raises:
        OSError: it cannot be listed.
    """
    return {nfc(name): name for name in os.listdir(folder)}  # noqa: PTH208  # names, not paths
