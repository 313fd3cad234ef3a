"""Run directories ``runs/<name>/<number>/``: making, finding and removing them, and their ``metrics.json``."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from transferkit.errors import UserError
from transferkit.runtime.files import atomic_path, discard
from transferkit.runtime.json_files import read_json, write_json

log = logging.getLogger(__name__)


def new_run(root: Path, name: str) -> Path:
    """Make the next run directory of a name.

    Raises:
        UserError: the directory cannot be written, or the name cannot be that of a folder.
    """
    check_name(name)
    folder = root / "runs" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = max(numbers(folder), default=-1) + 1
        while True:
            try:
                (folder / str(number)).mkdir(parents=True)  # a failed run may just have removed the folder
                return folder / str(number)
            except FileExistsError:  # another fit has just taken it
                number += 1
    except OSError as error:
        raise UserError(
            f'cannot write the run directory {folder}: {error.strerror}; set `default_root_dir="DIR"`'
        ) from error


def check_name(name: str) -> None:
    """Raise if the name of a run cannot be that of a folder.

    Raises:
        UserError: it cannot.
    """
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"`name` {name!r} cannot name a folder; leave out slashes and dots")
    if not name.isprintable() or len(name) > 100 or len(name.encode()) > 255:
        raise UserError(f"`name` {name[:100]!r} cannot name a folder; give a short one without control characters")


def remove_run(run: Path) -> None:
    """Remove a run directory, and the folders above it that become empty."""
    discard(run)
    for folder in (run.parent, run.parent.parent):
        with suppress(OSError):  # it holds other runs
            folder.rmdir()


def remove_unsaved(run: Path) -> None:
    """Remove a run directory that holds no checkpoint."""
    if not any((run / "checkpoints").glob("*.ckpt")):
        remove_run(run)


def newest_run(root: Path, name: str | None) -> Path:
    """Find the newest run with a checkpoint, of one name or of any.

    Raises:
        UserError: no run has a checkpoint.
    """
    folders = [root / "runs" / name] if name else sorted((root / "runs").glob("*"))
    found = [folder / str(number) for folder in folders for number in numbers(folder)]
    found = [run for run in found if any((run / "checkpoints").glob("*.ckpt"))]
    if not found:
        wanted = root / "runs" / (name or "*")
        raise UserError(f"no run with a checkpoint in {wanted}; fit first, or give a checkpoint file")
    return max(found, key=lambda run: ((run / "checkpoints").stat().st_mtime_ns, int(run.name)))


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the runs in a folder."""
    return [int(run.name) for run in folder.glob("*") if run.name.isdecimal() and run.is_dir()]


def find_checkpoint(root: Path, name: str | None, which: str) -> tuple[Path | None, Path]:
    """Find the run directory and the file of ``best``, ``last`` or a path.

    If a run was never validated, ``best`` is its ``last``, with a warning.

    Returns:
        The run directory, None if the file is not in a run; and the file.

    Raises:
        UserError: the checkpoint does not exist.
    """
    if which in ("best", "last"):
        path = newest_run(root, name) / "checkpoints" / f"{which}.ckpt"
        if which == "best" and not path.is_file() and path.with_name("last.ckpt").is_file():
            path = path.with_name("last.ckpt")
            log.warning("no validation ran, so there is no best.ckpt; using %s", path)
    else:
        path = Path(which).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give best, last or an existing file")
    run = path.parent.parent
    return run if path.parent.name == "checkpoints" and (run / "config.yaml").is_file() else None, path


def checkpoint_of(run: Path) -> Path | None:
    """Return ``best.ckpt`` of a run, ``last.ckpt`` if no epoch was validated, None if there is neither."""
    files = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return next((file for file in files if file.is_file()), None)


def within_run(place: Path, resumes: bool = False) -> Path:
    """Return the checkpoint in a run directory; another file or folder as it is.

    Args:
        place: a path that exists.
        resumes: whether a fit goes on from it, with ``last.ckpt``.

    Raises:
        UserError: a folder of runs.
    """
    if (place / "checkpoints").is_dir():
        last = place / "checkpoints" / "last.ckpt"
        best = checkpoint_of(place) or place / "checkpoints" / "best.ckpt"
        return last if resumes and last.is_file() else best
    runs = [place / str(number) for number in sorted(numbers(place))]
    if runs := [run for run in runs if checkpoint_of(run)]:
        raise UserError(f'{place} holds runs, not a checkpoint; give the newest, {runs[-1]}, or `name="{place.name}"`')
    return place


def read_metrics(run: Path) -> dict[str, float]:
    """Return what is defined in the run's ``metrics.json``; nothing if it is missing or not JSON."""
    try:
        return {name: value for name, value in read_json(run / "metrics.json").items() if value is not None}
    except (OSError, ValueError):
        return {}


def measured_on_test(run: Path, epoch: int) -> dict[str, float]:
    """Return the ``test/`` metrics of a run if they belong to the checkpoint of that epoch, otherwise none."""
    values = read_metrics(run)
    if values.get("test/epoch") != epoch:
        return {}
    return {name: value for name, value in values.items() if name.startswith("test/")}


def write_metrics(run: Path, values: Mapping[str, float]) -> None:
    """Write the run's ``metrics.json``: the logged values by name, and the epochs that they belong to."""
    write_json(run / "metrics.json", values)


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write the run's ``config.yaml``: its options by name, in plain types."""
    with atomic_path(run / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
