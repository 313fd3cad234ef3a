"""Atomic files: written under a temporary name beside the target, then renamed."""

import ctypes
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from transferkit.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)  # a hidden name with random digits
# Errors of a disk or the system that any read or write may meet -> the remedy.
DISK_FAULTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free disk space or choose another path"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk, or the network drive"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files, with ulimit -n"),
    errno.EROFS: "choose another path",
}
ABANDONED = 24 * 3600  # seconds without a write after which a temporary is removed, on systems without locks
# Suffixes of tables that are not Parquet.
OTHER_FORMATS = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".xlsx"}


@contextmanager
def atomic_path(target: str | Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that takes its name on success.

    The temporary path is an empty file or directory at first. This process holds a lock on it until the block ends,
    so that no other process removes it, not even one in another container. If this process is killed, the next one
    that writes into the same folder removes it. On any exception it is removed and ``target`` is unchanged. A
    directory replaces the directory that was there before. If ``target`` is a symbolic link, its own target is
    replaced, and the temporary path is beside that.

    Args:
        target: the file or directory to write.
        folder: whether it is a directory.

    Raises:
        UserError: the target cannot be written (missing rights, full disk, a folder in the way), or is a device,
            which the renamed file would replace for everybody.
    """
    named = Path(target)
    target = named if named.name else named.absolute()
    temporary: Path | None = None
    held: int | None = None
    try:
        device = target.exists() and not (target.is_file() or target.is_dir())
        if device or target.absolute().parent == Path("/dev"):  # /dev/stdout may lead to a file
            raise UserError(f"cannot write {named}: a device cannot be replaced; choose another path")
        target.parent.mkdir(parents=True, exist_ok=True)
        target = through_links(target)
        sweep_once(target.parent.absolute())
        temporary, held = new_temporary(target, folder)
        mode = temporary.stat().st_mode
        yield temporary
        let_read(temporary, mode)
        install(temporary, target)
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str | Path) else target
        is_temporary = any(map(TEMPORARY.fullmatch, path.parts))
        if not is_temporary and path not in {target, named, *target.parents}:
            raise  # about a file that the caller read
        if any(map(TEMPORARY.fullmatch, named.parts)):
            raise  # inside of a directory that is being written: its block reports its own name
        raise unwritable(named, error) from error
    finally:
        if temporary:
            discard(temporary)
        if held is not None:
            os.close(held)


def let_read(written: Path, mode: int) -> None:
    """Give a file, or those in a directory, the rights of a new one: some libraries write for the owner alone.

    Args:
        written: the file or directory.
        mode: of it when it was created, which the umask has decided.
    """
    wanted = mode & 0o666
    for path in written.rglob("*") if written.is_dir() else (written,):
        if path.is_file() and not path.is_symlink() and (now := path.stat().st_mode) & wanted != wanted:
            path.chmod(stat.S_IMODE(now) | wanted)


def through_links(target: Path) -> Path:
    """Return the path to replace: the path itself, or the target of a symbolic link.

    Raises:
        OSError: the links form a loop.
    """
    if not target.is_symlink():
        return target
    real = Path(os.path.realpath(target))
    if real.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target))
    return real


def new_temporary(target: Path, folder: bool) -> tuple[Path, int | None]:
    """Create an empty file or directory with a new name beside the target, and lock it.

    Returns:
        Its path, and the descriptor that holds the lock, ``None`` if the system has no such locks.

    Raises:
        OSError: it cannot be created.
    """
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        path.mkdir() if folder else path.touch(exist_ok=False)
        with suppress(BlockingIOError, FileNotFoundError):  # removed by another process before it was locked
            held = lock(path)
            path.stat()
            return path, held


def lock(path: Path) -> int | None:
    """Lock a file or directory for this process, until the descriptor is closed or the process ends.

    Returns:
        The descriptor; ``None`` if the system or the file system has no such locks.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return None
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only files open for writing
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return number


def install(whole: Path, target: Path) -> None:
    """Rename a file or directory to its target; a directory that was there gets the old name.

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
    """Return the error for a path that cannot be written; for the cache, it says how to move it."""
    reason = error.strerror or error
    if target.absolute().is_relative_to(cache_dir().absolute()):
        return UserError(
            f"cannot write the cache folder {cache_dir()}: {reason}; "
            "set TRANSFERKIT_CACHE to another one or free disk space"
        )
    return UserError(f"cannot write {target}: {reason}; choose another path or free disk space")


def disk_fault(error: BaseException) -> UserError | None:
    """What to say of an error that is the disk's, or the system's, in whatever library; None for any other one."""
    if not isinstance(error, OSError) or error.errno not in DISK_FAULTS:
        return None
    return UserError(f"{place_of(error) or 'a file'}: {error.strerror or error}; {DISK_FAULTS[error.errno]}")


def place_of(error: OSError) -> str | None:
    """The name of the file that an error is of, as far as it can be told; None for our output."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename)
    return open_file(error.__traceback__)


def open_file(trace: TracebackType | None) -> str | None:
    """The name of the file that the innermost function of a traceback has open: writing to it names none."""
    for frame, _ in reversed(list(traceback.walk_tb(trace))):
        names = [getattr(value, "name", None) for value in frame.f_locals.values() if isinstance(value, io.IOBase)]
        if found := next((name for name in names if isinstance(name, str) and name != "<stdout>"), None):
            return found
    return None


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


def check_parquet(place: str | Path) -> None:
    """Refuse a file name that promises another format than Parquet, in which tables of embeddings are written.

    Raises:
        UserError: the suffix is that of another format.
    """
    if Path(place).suffix.lower() in OTHER_FORMATS:
        raise UserError(f"{place}: tables of embeddings are Parquet; give {Path(place).with_suffix('.parquet')}")


def check_folder(folder: str | Path) -> None:
    """Validate a folder for results before they are computed.

    Raises:
        UserError: it cannot be created or written into.
    """
    path = Path(folder).absolute()
    existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise UserError(f"cannot write into {folder}: {existing} is not a folder; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {folder}: no right to write in {existing}; choose another path")


def sweep(folder: Path) -> None:
    """Remove the temporary files and directories that processes have left in a folder when they were killed."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # in use, of another user, or already gone
                held = lock(path)
                try:
                    if held is not None or is_abandoned(path):
                        discard(path)
                finally:
                    if held is not None:
                        os.close(held)


sweep_once = cache(sweep)  # once per process and folder


def is_abandoned(path: Path) -> bool:
    """Return whether nothing was written into a temporary file or directory for a day."""
    return max(inner.stat().st_mtime for inner in (path, *path.rglob("*"))) < time.time() - ABANDONED


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two directories, in one step if the system can (Linux, most file systems).

    On other systems ``other`` is absent for a moment between two renames.

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
    """Remove a file or a directory tree, if it exists."""
    if not os.path.lexists(path):  # Path.is_dir would raise if the rights to look are missing
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)  # another process of the fit may remove it, too


def file_sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Return the folder for cached features and decoding results.

    ``$TRANSFERKIT_CACHE`` or, if it is not set, ``transferkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "transferkit"
    return Path(os.environ.get("TRANSFERKIT_CACHE", default)).expanduser()
