"""Files that are whole or absent: written under a temporary name beside the target, then renamed."""

import ctypes
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from transferkit.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)  # ours: hidden, and named by chance
ABANDONED = 24 * 3600  # seconds after which a temporary is nobody's, where the system does not say who holds it


@contextmanager
def atomic_path(target: str | Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that takes its name on success.

    There is an empty file at the temporary path, or an empty directory. This process holds a lock on it until the
    block ends, however it ends: nobody removes it meanwhile, be it from another container, and once the process is
    no more the next one that writes into the same folder does. On any exception it is removed and ``target`` stays
    as it was. A directory takes the place of the directory that was there before. Where ``target`` is a symbolic
    link, what it leads to is replaced, and the temporary path lies beside that.

    Args:
        target: the file or directory to write.
        folder: whether it is a directory.

    Raises:
        UserError: the place cannot be written (missing rights, full disk, a folder in the way), or is a device,
            which the renamed file would replace for everybody.
    """
    named = Path(target)
    target = named if named.name else named.absolute()
    temporary: Path | None = None
    held: int | None = None
    try:
        device = target.exists() and not (target.is_file() or target.is_dir())
        if device or target.absolute().parent == Path("/dev"):  # /dev/stdout may lead to a file
            raise UserError(f"cannot write {named}: a device cannot be replaced; choose another place")
        target.parent.mkdir(parents=True, exist_ok=True)
        target = through_links(target)
        sweep_once(target.parent.absolute())
        temporary, held = new_temporary(target, folder)
        yield temporary
        install(temporary, target)
    except OSError as error:
        place = Path(error.filename) if isinstance(error.filename, str | Path) else target
        within = any(TEMPORARY.fullmatch(name) for name in place.parts)
        if not within and place not in {target, named, *target.parents}:
            raise  # of a file that the caller read
        raise unwritable(named, error) from error
    finally:
        if temporary:
            discard(temporary)
        if held is not None:
            os.close(held)


def through_links(target: Path) -> Path:
    """What is to be replaced: a path itself, or what it leads to where it is a symbolic link.

    Raises:
        OSError: the links go round in a circle.
    """
    if not target.is_symlink():
        return target
    real = Path(os.path.realpath(target))
    if real.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target))
    return real


def new_temporary(target: Path, folder: bool) -> tuple[Path, int | None]:
    """Make an empty file or directory of a new name beside the target, and lock it.

    Returns:
        Its path, and the descriptor that holds the lock, ``None`` where there are no such locks.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        path.mkdir() if folder else path.touch(exist_ok=False)
        with suppress(BlockingIOError, FileNotFoundError):  # swept in the moment before it was locked
            held = lock(path)
            path.stat()
            return path, held


def lock(path: Path) -> int | None:
    """Lock a file or directory for this process, until the descriptor is closed or the process ends.

    Returns:
        The descriptor; ``None`` if the system or the file system has no such locks.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return None
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # over NFS, only what is open for writing
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return number


def install(whole: Path, target: Path) -> None:
    """Give a file or directory its name; a directory that had it is left under the other one.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        whole.replace(target)
    except OSError:
        if not (whole.is_dir() and target.is_dir()):
            raise
        exchange(whole, target)


def unwritable(target: Path, error: OSError) -> UserError:
    """What to say of a place that cannot be written; of the cache, which nobody named, how to have it elsewhere."""
    reason = error.strerror or error
    if target.absolute().is_relative_to(cache_dir().absolute()):
        return UserError(
            f"cannot write the cache folder {cache_dir()}: {reason}; set TRANSFERKIT_CACHE to another one or free room"
        )
    return UserError(f"cannot write {target}: {reason}; choose another place or free room")


def check_place(place: str | Path, what: str, foreign: Callable[[Path], str | None], overwrite: bool = True) -> None:
    """Refuse a place for results that holds something else, or results that must not be replaced.

    Args:
        place: the file or directory to write.
        what: the kind of results, for the message.
        foreign: what tells the content of an existing place from such results, or ``None`` if it is one of them.
        overwrite: whether earlier results may be replaced.

    Raises:
        UserError: the place is not to be written over.
    """
    place = Path(place)
    if not place.exists():
        return
    if (found := foreign(place)) is not None:
        raise UserError(f"{place} holds something else than {what} ({found}); choose another place")
    if not overwrite:
        raise UserError(f"{place} exists; choose another place or add `overwrite=True`")


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
    """Remove from a folder the temporary files and directories that processes which are no more have left there."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # of a living process, somebody else's, or just gone
                held = lock(path)
                try:
                    if held is not None or is_abandoned(path):
                        discard(path)
                finally:
                    if held is not None:
                        os.close(held)


sweep_once = cache(sweep)  # once a process and folder


def is_abandoned(path: Path) -> bool:
    """Whether nothing was written into a temporary file or directory for a day."""
    return max(inner.stat().st_mtime for inner in (path, *path.rglob("*"))) < time.time() - ABANDONED


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
