"""Files that are whole or absent: written under a temporary name beside the target, then renamed."""

import ctypes
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from transferkit.errors import UserError

MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # several may share a file system


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` (file or directory) that takes its name on success.

    On any exception the temporary file or directory is removed and ``target`` stays as it was. A
    directory takes the place of the directory that was there before. What killed processes left half-written in
    the same folder is removed.

    Raises:
        UserError: the place cannot be written (missing rights, full disk, a folder in the way), or is a device,
            which the renamed file would replace for everybody.
    """
    target = Path(target)
    target = target if target.name else target.absolute()
    temporary = target.with_name(f".{target.name}.{MACHINE}-{os.getpid()}.tmp")
    try:
        device = target.exists() and not (target.is_file() or target.is_dir())
        if device or target.absolute().parent == Path("/dev"):  # /dev/stdout may lead to a file
            raise UserError(f"cannot write {target}: a device cannot be replaced; choose another place")
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(target.parent.absolute())
        yield temporary
        if temporary.is_dir() and target.is_dir():
            exchange(temporary, target)  # the old directory is now the temporary one
        else:
            temporary.replace(target)
    except OSError as error:
        place = Path(error.filename) if isinstance(error.filename, str | Path) else temporary
        ours = {temporary, target, *target.parents}
        if place not in ours and temporary not in place.parents:
            raise  # of a file that the caller read
        raise unwritable(target, error) from error
    finally:
        discard(temporary)


def unwritable(target: Path, error: OSError) -> UserError:
    """What to say of a place that cannot be written; of the cache, which nobody named, how to have it elsewhere."""
    reason = error.strerror or error
    if target.absolute().is_relative_to(cache_dir().absolute()):
        return UserError(
            f"cannot write the cache folder {cache_dir()}: {reason}; set TRANSFERKIT_CACHE to another one or free room"
        )
    return UserError(f"cannot write {target}: {reason}; choose another place or free room")


def check_folder(folder: str | Path) -> None:
    """Refuse a folder for results that cannot be made or written into: to be asked before the work for them.

    Raises:
        UserError: something else than a folder is in its place or above it; missing rights.
    """
    place = Path(folder).absolute()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"cannot write into {folder}: {there} is no folder; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {folder}: no right to write in {there}; choose another place")


def sweep(folder: Path) -> None:
    """Remove from a folder the temporary files and directories of processes of this machine that are no more."""
    for path in folder.glob(f".*.{MACHINE}-*.tmp"):
        number = re.fullmatch(r".*-(\d+)\.tmp", path.name, re.DOTALL)
        if number and not is_alive(int(number[1])):
            with suppress(OSError):  # somebody else's, or just gone
                discard(path)


sweep_once = cache(sweep)  # once a process and folder


def is_alive(process: int) -> bool:
    """Whether there is a process of that number; where that cannot be asked, yes."""
    if os.name != "posix":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def exchange(one: Path, other: Path) -> None:
    """Let two directories swap names, in one step where the system knows how (Linux, most file systems).

    Elsewhere ``other`` is absent for the moment between two renames.

    Raises:
        OSError: they cannot be renamed.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)
    if rename and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return
    aside = other.with_name(f"{one.name}.old")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def discard(path: Path) -> None:
    """Remove a file or a directory tree, if it is there."""
    if not os.path.lexists(path):  # also where the rights to look are missing: Path.is_dir would raise
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def cache_dir() -> Path:
    """Where features and decoding results are remembered.

    ``$TRANSFERKIT_CACHE``, else ``transferkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "transferkit"
    return Path(os.environ.get("TRANSFERKIT_CACHE", default)).expanduser()
