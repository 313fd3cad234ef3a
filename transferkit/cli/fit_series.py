"""Several fits in one command, each in a run of its own below one folder; what was interrupted continues."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.cli import console
from transferkit.cli.arguments import all_options, find_config, read_setting, read_yaml, without_option
from transferkit.errors import UserError
from transferkit.runtime.files import discard
from transferkit.runtime.json_files import read_json, write_json
from transferkit.training.run_directory import check_name

ONE = (None, "1", "auto")  # values of devices and num_nodes for one process


@dataclass(frozen=True)
class Kind:
    """A kind of series.

    Attributes:
        option: that asks for it, without dashes.
        word: in the name of its folder and of its record.
        single: how one of the fits is asked for, for messages.
        part: what one of them is called.
    """

    option: str
    word: str
    single: str
    part: str


@dataclass(frozen=True)
class Series:
    """What to fit.

    Attributes:
        kind: of the series.
        count: number of the fits.
        arguments: of each fit, without its name and what makes it this one.
        given: all that decides the results, to find an interrupted one again.
        name: of the fit.
        root: where ``runs`` is.
        json: whether to print one JSON object.
    """

    kind: Kind
    count: int
    arguments: list[str]
    given: Mapping[str, Any]
    name: str
    root: Path
    json: bool

    def record(self, parent: Path) -> Path:
        """Return the file that says what a folder holds."""
        return parent / f"{self.kind.word}.json"


def files_of(arguments: Sequence[str]) -> list[Path]:
    """Return the configs that are given."""
    return [find_config(name) for name in all_options(arguments, "--config")]


def plan_series(kind: Kind, count: str, arguments: Sequence[str]) -> Series:
    """Return what to fit.

    Args:
        kind: of the series.
        count: number of the fits, as it is given.
        arguments: of the command.

    Raises:
        UserError: not a number; options that a series does not take.
    """
    option, files = f"--{kind.option}", files_of(arguments)
    if not count.isdecimal() or int(count) < 2:
        raise UserError(f"{option} is {count}; give 2 or more")
    if read_setting(arguments, files, "ckpt_path"):
        raise UserError(f"--ckpt_path resumes one fit; to continue {option}, start its command again without it")
    for name in ("devices", "num_nodes"):
        if (value := read_setting(arguments, files, f"trainer.{name}")) not in ONE:
            raise UserError(
                f"--trainer.{name} is {value}, but {option} fits in one process; fit each {kind.part} by itself, "
                f"with {kind.single}"
            )
    if read_setting(arguments, files, "trainer.fast_dev_run") not in (None, "False", "false", "0"):
        first = kind.single.split(",")[0]
        raise UserError(f"--trainer.fast_dev_run keeps nothing to compare; leave it out, or add {first}")
    name = read_setting(arguments, files, "name") or (files[-1].stem if files else "fit")
    check_name(name)
    plain = [argument for argument in arguments if argument != "--json"]
    each = [*without_option(plain, "--name"), "--trainer.devices", "1"]
    root = Path(read_setting(arguments, files, "trainer.default_root_dir") or ".")
    given = {"arguments": each, "configs": [read_yaml(file) for file in files]}
    return Series(kind, int(count), each, given, name, root, "--json" in arguments)


def fit_series(plan: Series, fit: Callable[[list[str]], int], own: Callable[[int], list[str]]) -> Path:
    """Fit what is not done yet; return the folder of the runs.

    Args:
        plan: what to fit.
        fit: runs one command.
        own: number of a fit -> the arguments that make it this one.

    Raises:
        UserError: of any fit.
    """
    parent, kind = find_unfinished(plan) or start(plan), plan.kind
    for number in range(plan.count):
        run = parent / str(number)
        if is_done(run):
            console.note(f"{kind.part} {number} of {plan.count}: done before, {run}")
            continue
        last = run / "checkpoints" / "last.ckpt"
        resumed = ["--ckpt_path", str(last)] if last.is_file() else []
        if not resumed:
            discard(run)  # of a fit that was killed before its first checkpoint
        try:
            with redirect_stdout(sys.stderr):
                fit(["fit", *plan.arguments, *own(number), "--name", parent.name, *resumed])
        except KeyboardInterrupt:
            console.note(f"{number} of {plan.count} {kind.part}s are done; to continue, start the same command again")
            raise
        except UserError:
            if not any(path.is_dir() for path in parent.glob("*")):
                discard(parent)
            raise
        console.note(f"{kind.part} {number} of {plan.count}: done, {run}")
    return parent


def is_done(run: Path) -> bool:
    """Return whether a fit has written its metrics, which it does at its end."""
    return (run / "metrics.json").is_file()


def find_unfinished(plan: Series) -> Path | None:
    """Return the newest folder of the same fits that were interrupted."""
    for folder in reversed(folders(plan)):
        try:
            record = read_json(plan.record(folder))
        except (OSError, ValueError):
            continue
        if record.get("given") == plan.given and "metrics" not in record:
            return folder
    return None


def folders(plan: Series) -> list[Path]:
    """Return the folders of this kind and name, the oldest first."""
    prefix = f"{plan.name}-{plan.kind.word}-"
    found = [path for path in (plan.root / "runs").glob(f"*-{plan.kind.word}-*") if path.name.startswith(prefix)]
    return sorted((path for path in found if number_of(path).isdecimal()), key=lambda path: int(number_of(path)))


def number_of(folder: Path) -> str:
    """Return the number at the end of a folder's name."""
    return folder.name.rpartition("-")[2]


def start(plan: Series) -> Path:
    """Make the folder of the runs, with a record of what they are of.

    Raises:
        UserError: it cannot be written.
    """
    last = folders(plan)
    parent = plan.root / "runs" / f"{plan.name}-{plan.kind.word}-{int(number_of(last[-1])) + 1 if last else 0}"
    try:
        parent.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write the folder {parent}: {error.strerror}; set --trainer.default_root_dir DIR"
        ) from error
    write_json(plan.record(parent), {plan.kind.word: plan.count, "given": plan.given})
    return parent
