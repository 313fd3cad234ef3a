"""``fit --data.folds K``: K fits, each in a run of its own, one after the other; their metrics and the spread."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from transferkit.cli import console
from transferkit.cli.arguments import all_options, find_config, read_setting, read_yaml, without_option
from transferkit.cli.fit_arguments import as_root
from transferkit.errors import UserError
from transferkit.runtime.files import discard
from transferkit.runtime.json_files import read_json, write_json
from transferkit.training.run_directory import check_name

RECORD = "folds.json"
ONE = (None, "1", "auto")  # values of devices and num_nodes for one process


@dataclass(frozen=True)
class FoldsPlan:
    """What to fit.

    Attributes:
        folds: K.
        arguments: of each fit, without the fold.
        given: all that decides the results, to find an interrupted one again.
        name: of the fit.
        root: where ``runs`` is.
        json: whether to print one JSON object.
    """

    folds: int
    arguments: list[str]
    given: Mapping[str, Any]
    name: str
    root: Path
    json: bool


def plan_folds(arguments: Sequence[str]) -> FoldsPlan | None:
    """Return the plan of a fit of several folds; None for any other fit, one of a single fold included.

    Raises:
        UserError: not a number of folds; options that a fit of folds does not take.
    """
    arguments = as_root("fit", arguments)
    files = [find_config(name) for name in all_options(arguments, "--config")]
    count = read_setting(arguments, files, "data.folds")
    single = read_setting(arguments, files, "data.fold")
    asks = any(argument.startswith("--print_config") for argument in arguments)
    if count in (None, "null") or single not in (None, "null") or asks:
        return None
    if not str(count).isdecimal() or int(str(count)) < 2:
        raise UserError(f"--data.folds is {count}; give 2 or more")
    if read_setting(arguments, files, "ckpt_path"):
        raise UserError("--ckpt_path resumes one fit; to continue --data.folds, start its command again without it")
    for name in ("devices", "num_nodes"):
        if (value := read_setting(arguments, files, f"trainer.{name}")) not in ONE:
            raise UserError(
                f"--trainer.{name} is {value}, but --data.folds fits in one process; fit each fold by itself, "
                "with --data.fold 0, 1, ..."
            )
    if read_setting(arguments, files, "trainer.fast_dev_run") not in (None, "False", "false", "0"):
        raise UserError("--trainer.fast_dev_run keeps nothing to compare; leave it out, or add --data.fold 0")
    name = read_setting(arguments, files, "name") or (files[-1].stem if files else "fit")
    check_name(name)
    plain = [argument for argument in arguments if argument != "--json"]
    each = [*without_option(plain, "--name"), "--trainer.devices", "1"]
    root = Path(read_setting(arguments, files, "trainer.default_root_dir") or ".")
    given = {"arguments": each, "configs": [read_yaml(file) for file in files]}
    return FoldsPlan(int(str(count)), each, given, name, root, "--json" in arguments)


def fit_folds(plan: FoldsPlan, fit: Callable[[list[str]], int]) -> int:
    """Fit every fold that is not done yet, and print the mean and the spread of the metrics; return the exit status.

    Args:
        plan: what to fit.
        fit: runs one command.

    Raises:
        UserError: of any fit.
    """
    parent = find_unfinished(plan) or start(plan)
    for fold in range(plan.folds):
        run = parent / str(fold)
        if is_done(run):
            console.note(f"fold {fold} of {plan.folds}: done before, {run}")
            continue
        last = run / "checkpoints" / "last.ckpt"
        resumed = ["--ckpt_path", str(last)] if last.is_file() else []
        if not resumed:
            discard(run)  # of a fit that was killed before its first checkpoint
        try:
            with redirect_stdout(sys.stderr):
                fit(["fit", *plan.arguments, "--data.fold", str(fold), "--name", parent.name, *resumed])
        except KeyboardInterrupt:
            console.note(f"{fold} of {plan.folds} folds are done; to continue, start the same command again")
            raise
        except UserError:
            if not any(path.is_dir() for path in parent.glob("*")):
                discard(parent)
            raise
        console.note(f"fold {fold} of {plan.folds}: done, {run}")
    finish(plan, parent)
    return 0


def is_done(run: Path) -> bool:
    """Return whether a fit has written its metrics, which it does at its end."""
    return (run / "metrics.json").is_file()


def find_unfinished(plan: FoldsPlan) -> Path | None:
    """Return the newest folder of the same folds that were interrupted."""
    for folder in reversed(folders(plan)):
        try:
            record = read_json(folder / RECORD)
        except (OSError, ValueError):
            continue
        if record.get("given") == plan.given and "metrics" not in record:
            return folder
    return None


def folders(plan: FoldsPlan) -> list[Path]:
    """Return the folders of folds of this name, the oldest first."""
    prefix = f"{plan.name}-folds-"
    found = [path for path in (plan.root / "runs").glob("*-folds-*") if path.name.startswith(prefix)]
    return sorted((path for path in found if number(path).isdecimal()), key=lambda path: int(number(path)))


def number(folder: Path) -> str:
    """Return the number at the end of a folder's name."""
    return folder.name.rpartition("-")[2]


def start(plan: FoldsPlan) -> Path:
    """Make the folder of the runs, with a record of what they are of.

    Raises:
        UserError: it cannot be written.
    """
    last = folders(plan)
    parent = plan.root / "runs" / f"{plan.name}-folds-{int(number(last[-1])) + 1 if last else 0}"
    try:
        parent.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write the folder {parent}: {error.strerror}; set --trainer.default_root_dir DIR"
        ) from error
    write_json(parent / RECORD, {"folds": plan.folds, "given": plan.given})
    return parent


def finish(plan: FoldsPlan, parent: Path) -> None:
    """Write and print the metrics of all folds."""
    runs = [parent / str(fold) for fold in range(plan.folds)]
    spread = summarize([read_json(run / "metrics.json") for run in runs])
    content = {"folds": plan.folds, "runs": list(map(str, runs)), "metrics": spread}
    write_json(parent / RECORD, {**content, "given": plan.given})
    if plan.json:
        console.as_json({**content, "run": str(parent)})
    else:
        print_spread(spread, f"{parent}: {plan.folds} folds")
    for fold, run in enumerate(runs):
        console.note(f"fold {fold}: {run}")
    console.written(parent / RECORD)
    console.next_command("test", "--ckpt_path", runs[0] / "checkpoints" / "best.ckpt")


def summarize(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the mean and the sample standard deviation of every metric that all folds have.

    Args:
        metrics: name -> value of each fold; the epochs that they belong to are left out.
    """
    names = sorted(set.intersection(*(set(each) for each in metrics)))
    values = {name: [float(each[name]) for each in metrics] for name in names if not name.endswith("/epoch")}
    return {name: {"mean": mean(of), "std": stdev(of), "folds": of} for name, of in values.items()}


def print_spread(spread: Mapping[str, Any], title: str) -> None:
    """Print what :func:`summarize` returned as a table."""
    told = {name: of for name, of in spread.items() if name.startswith(("train/", "val/"))}  # the file has all
    rows = [(name, of["mean"], of["std"], min(of["folds"]), max(of["folds"])) for name, of in told.items()]
    console.table(("metric", "mean", "± std", "lowest", "highest"), rows, title)
