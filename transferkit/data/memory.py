"""What is remembered of images that were decoded: a row each in a small database in the cache, one for each folder.

Adding rows costs as much as there are rows to add, and two processes may do so at a time.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from transferkit import __version__
from transferkit.data.fingerprint import stamp
from transferkit.images.decoding import decoders
from transferkit.runtime.files import cache_dir, discard, unwritable

_log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS images
    (path TEXT PRIMARY KEY, stamp TEXT, reason TEXT) WITHOUT ROWID"""
_PATIENCE = 30  # seconds that a process waits for another one's rows


def known(root: str, names: Iterable[str]) -> dict[str, str | None]:
    """Path -> reason why it cannot be decoded, or None, of the files that have not changed since."""
    file = memory_file(root)
    found: dict[str, str | None] = {}
    if not file.is_file():
        return found
    try:
        if file.stat().st_size % 512:  # of which a page has one or more
            raise sqlite3.DatabaseError("it is cut short")
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)) as memory:
            for name in names:
                row = memory.execute("SELECT stamp, reason FROM images WHERE path = ?", (name,)).fetchone()
                if row and row[0] == stamp(Path(root, name)):
                    found[name] = row[1]
    except (OSError, sqlite3.Error) as error:
        _log.warning("ignoring the memory of checked images in %s, it is damaged: %s", file, error)
        return {}
    return found


def add(root: str, results: Mapping[str, str | None]) -> None:
    """Remember reasons, or None for good images.

    Raises:
        UserError: the cache cannot be written.
    """
    rows = [(name, now, reason) for name, reason in results.items() if (now := stamp(Path(root, name)))]
    file = memory_file(root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            insert(file, rows)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the place, not the content
                raise
            discard(file)
            insert(file, rows)
    except OSError as error:
        raise unwritable(file, error) from error
    except sqlite3.Error as error:
        raise unwritable(file, OSError(None, str(error))) from error


def insert(file: Path, rows: Sequence[tuple[object, ...]]) -> None:
    """Put rows into the database, in the place of those of the same paths."""
    with closing(sqlite3.connect(file, timeout=_PATIENCE)) as memory, memory:
        memory.execute("PRAGMA synchronous = OFF")  # what a power cut takes is decoded again
        memory.execute(_TABLE)
        memory.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", rows)


def memory_file(root: str) -> Path:
    """The database of a folder of images, as the decoders that are installed see them."""
    key = "\0".join((root, "stamps", __version__, decoders()))
    return cache_dir() / "decoded" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.sqlite"
