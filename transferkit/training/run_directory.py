"""Run directories: ``runs/<name>/<number>/`` and what lies in them."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from transferkit.errors import UserError
from transferkit.runtime.files import discard
from transferkit.runtime.json_files import read_json, write_json

log = logging.getLogger(__name__)


def new_run(root: Path, name: str) -> Path:
    """Make the next run directory of a name.

    Raises:
        UserError: the place cannot be written, or the name is no name of a folder.
    """
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"--name {name!r} cannot name a folder; leave out slashes and dots")
    if not name.isprintable() or len(name) > 100 or len(name.encode()) > 255:
        raise UserError(f"--name {name[:100]!r} cannot name a folder; give a short one without control characters")
    folder = root / "runs" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = max(numbers(folder), default=-1) + 1
        while True:
            try:
                (folder / str(number)).mkdir(parents=True)  # one that was refused may have removed the folder just now
                return folder / str(number)
            except FileExistsError:  # another fit took it just now
                number += 1
    except OSError as error:
        raise UserError(
            f"cannot write the run directory {folder}: {error.strerror}; set --trainer.default_root_dir DIR"
        ) from error


def remove_run(run: Path) -> None:
    """Remove a run directory and the folders that it alone was in."""
    discard(run)
    for folder in (run.parent, run.parent.parent):
        with suppress(OSError):  # other runs are in it
            folder.rmdir()


def newest_run(root: Path, name: str | None) -> Path:
    """The newest run that has a checkpoint, of one name or of any.

    Raises:
        UserError: there is none.
    """
    folders = [root / "runs" / name] if name else sorted((root / "runs").glob("*"))
    found = [folder / str(number) for folder in folders for number in numbers(folder)]
    found = [run for run in found if any((run / "checkpoints").glob("*.ckpt"))]
    if not found:
        wanted = root / "runs" / (name or "*")
        raise UserError(f"no run with a checkpoint in {wanted}; run transferkit fit first, or give a checkpoint file")
    return max(found, key=lambda run: ((run / "checkpoints").stat().st_mtime_ns, int(run.name)))


def numbers(folder: Path) -> list[int]:
    """Numbers of the runs in a folder."""
    return [int(run.name) for run in folder.glob("*") if run.name.isdecimal() and run.is_dir()]


def find_checkpoint(root: Path, name: str | None, which: str) -> tuple[Path | None, Path]:
    """The run directory and file that ``best``, ``last`` or a path stand for; None for a file in no run.

    Of a run that was never validated, ``best`` is ``last``, and a line says so.

    Raises:
        UserError: there is no such checkpoint.
    """
    if which in ("best", "last"):
        path = newest_run(root, name) / "checkpoints" / f"{which}.ckpt"
        if which == "best" and not path.is_file() and path.with_name("last.ckpt").is_file():
            path = path.with_name("last.ckpt")
            log.warning("no validation ran, so there is no best.ckpt: taking %s", path)
    else:
        path = Path(which).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give --ckpt_path best, last or a file")
    run = path.parent.parent
    return run if path.parent.name == "checkpoints" and (run / "config.yaml").is_file() else None, path


def read_metrics(run: Path) -> dict[str, float]:
    """What the run's ``metrics.json`` holds; nothing where it is not there or no longer JSON."""
    try:
        return read_json(run / "metrics.json")
    except (OSError, ValueError):
        return {}


def measured_on_test(run: Path, epoch: int) -> dict[str, float]:
    """The ``test/`` figures of a run, if they are of the checkpoint of that epoch."""
    known = read_metrics(run)
    if known.get("test/epoch") != epoch:
        return {}
    return {name: value for name, value in known.items() if name.startswith("test/")}


def write_metrics(run: Path, values: Mapping[str, float]) -> None:
    """Write the run's ``metrics.json``: what was logged, by its names, and the epochs it is of."""
    write_json(run / "metrics.json", values)
