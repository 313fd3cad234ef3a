"""Which images of a folder have been decoded: a small SQLite database per folder, in the cache directory.

The cost of adding rows does not depend on how many there are, and several processes may add rows at a time.
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from transferkit import __version__
from transferkit.data.fingerprint import stamp
from transferkit.images.decoding import Fault, decoders
from transferkit.runtime.files import cache_dir, discard, unwritable

log = logging.getLogger(__name__)

TABLE = """CREATE TABLE IF NOT EXISTS images
    (path TEXT PRIMARY KEY, stamp TEXT, kind TEXT, detail TEXT) WITHOUT ROWID"""
PATIENCE = 30  # seconds that a process waits while another one writes


def known(root: str, names: Iterable[str]) -> dict[str, Fault | None]:
    """Return path -> why it cannot be decoded, or None, for the files that have not changed since."""
    file = memory_file(root)
    found: dict[str, Fault | None] = {}
    if not file.is_file():
        return found
    try:
        if file.stat().st_size % 512:  # a whole file has pages of 512 bytes or a multiple of it
            raise sqlite3.DatabaseError("it is truncated")
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as memory:
            for name in names:
                row = memory.execute("SELECT stamp, kind, detail FROM images WHERE path = ?", (name,)).fetchone()
                if row and row[0] == stamp(Path(root, name)):
                    found[name] = None if row[1] is None else Fault(row[1], row[2])
        os.utime(file)  # the cache removes what was not used for the longest
    except (OSError, sqlite3.Error) as error:
        log.warning("ignoring the memory of checked images in %s, it is damaged: %s", file, error)
        return {}
    return found


def add(root: str, results: Mapping[str, Fault | None]) -> None:
    """Remember why images cannot be decoded, or None for good images.

    Raises:
        UserError: the cache cannot be written.
    """
    rows = [
        (name, now, *(fault or (None, None)))
        for name, fault in results.items()
        if (now := stamp(Path(root, name)))
    ]  # fmt: skip
    file = memory_file(root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            insert(file, rows)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # about the disk, not the content
                raise
            discard(file)
            insert(file, rows)
    except OSError as error:
        raise unwritable(file, error) from error
    except sqlite3.Error as error:
        raise unwritable(file, OSError(None, str(error))) from error


def insert(file: Path, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows into the database; they replace rows of the same path."""
    with closing(sqlite3.connect(file, timeout=PATIENCE)) as memory, memory:
        memory.execute("PRAGMA synchronous = OFF")  # rows lost in a power cut are decoded again
        memory.execute(TABLE)
        memory.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)


def memory_file(root: str) -> Path:
    """Return the database of a folder of images, for the decoders that are installed."""
    key = "\0".join((root, "kinds", __version__, decoders()))
    return cache_dir() / "decoded" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.sqlite"
