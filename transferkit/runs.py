"""Run directories: ``runs/<name>/<number>/`` and what lies in them."""

import json
from collections.abc import Mapping
from pathlib import Path

from transferkit.errors import UserError
from transferkit.files import atomic_path


def new_run(root: Path, name: str) -> Path:
    """Make the next run directory of a name.

    Raises:
        UserError: the place cannot be written.
    """
    folder = root / "runs" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = max(numbers(folder), default=-1) + 1
        while True:
            try:
                (folder / str(number)).mkdir()
                return folder / str(number)
            except FileExistsError:  # another fit took it just now
                number += 1
    except OSError as error:
        raise UserError(
            f"cannot write the run directory {folder}: {error.strerror}; set --trainer.default_root_dir DIR"
        ) from error


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
        raise UserError(f"no run with a checkpoint in {wanted}; run transferkit fit first, or give --ckpt_path FILE")
    return max(found, key=lambda run: ((run / "checkpoints").stat().st_mtime_ns, int(run.name)))


def numbers(folder: Path) -> list[int]:
    """Numbers of the runs in a folder."""
    return [int(run.name) for run in folder.glob("*") if run.name.isdecimal() and run.is_dir()]


def find_checkpoint(root: Path, name: str | None, which: str) -> tuple[Path, Path]:
    """The run directory and file that ``best``, ``last`` or a path stand for.

    Raises:
        UserError: there is no such checkpoint.
    """
    if which in ("best", "last"):
        run = newest_run(root, name)
        path = run / "checkpoints" / f"{which}.ckpt"
    else:
        path = Path(which)
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give --ckpt_path best, last or a file")
    return run, path


def update_metrics(run: Path, values: Mapping[str, float]) -> None:
    """Merge values into the run's ``metrics.json``, under the names that were logged."""
    path = run / "metrics.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(known | dict(values), indent=2, sort_keys=True) + "\n", encoding="utf-8")
