"""Files that are whole or absent: written under a temporary name beside the target, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transferkit.errors import UserError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` (file or directory) that takes its name on success.

    On any exception the temporary file or directory is removed and ``target`` stays as it was.

    Raises:
        UserError: the place cannot be written (missing rights, full disk, a folder in the way).
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(target.parent)):
            raise
        reason = error.strerror or error
        raise UserError(f"cannot write {target}: {reason}; choose another place or free room") from error
    finally:
        discard(temporary)


def discard(path: Path) -> None:
    """Remove a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def cache_dir() -> Path:
    """Where features and decoding results are remembered: ``$TRANSFERKIT_CACHE`` or ``~/.cache/transferkit``."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "transferkit"
    return Path(os.environ.get("TRANSFERKIT_CACHE", default)).expanduser()
