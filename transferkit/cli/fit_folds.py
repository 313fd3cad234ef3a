"""``fit --data.folds K``: K fits, each in a run of its own, one after the other; their metrics and the spread."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from transferkit.cli import console
from transferkit.cli.arguments import as_root, read_setting
from transferkit.cli.fit_series import Kind, Series, files_of, fit_series, plan_series
from transferkit.runtime.json_files import read_json, write_json

FOLDS = Kind("data.folds", "folds", "--data.fold 0, 1, ...", "fold")
RECORD = f"{FOLDS.word}.json"


def plan_folds(arguments: Sequence[str]) -> Series | None:
    """Return the plan of a fit of several folds; None for any other fit, one of a single fold included.

    Raises:
        UserError: not a number of folds; options that a fit of folds does not take.
    """
    arguments = as_root("fit", arguments)
    count = read_setting(arguments, files := files_of(arguments), "data.folds")
    single = read_setting(arguments, files, "data.fold")
    asks = any(argument.startswith("--print_config") for argument in arguments)
    if count in (None, "null") or single not in (None, "null") or asks:
        return None
    return plan_series(FOLDS, str(count), arguments)


def fit_folds(plan: Series, fit: Callable[[list[str]], int]) -> int:
    """Fit every fold that is not done yet, and print the mean and the spread of the metrics; return the exit status.

    Args:
        plan: what to fit.
        fit: runs one command.

    Raises:
        UserError: of any fit.
    """
    finish(plan, fit_series(plan, fit, lambda fold: ["--data.fold", str(fold)]))
    return 0


def finish(plan: Series, parent: Path) -> None:
    """Write and print the metrics of all folds."""
    runs = [parent / str(fold) for fold in range(plan.count)]
    spread = summarize([read_json(run / "metrics.json") for run in runs])
    content = {"folds": plan.count, "runs": list(map(str, runs)), "metrics": spread}
    write_json(plan.record(parent), {**content, "given": plan.given})
    if plan.json:
        console.as_json({**content, "run": str(parent)})
    else:
        print_spread(spread, f"{parent}: {plan.count} folds")
    for fold, run in enumerate(runs):
        console.note(f"fold {fold}: {run}")
    console.written(plan.record(parent))
    console.next_command("test", "--ckpt_path", runs[0] / "checkpoints" / "best.ckpt")


def summarize(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the mean and the sample standard deviation of every metric that all folds have.

    Args:
        metrics: name -> value of each fold, None if it is undefined; the epochs that they belong to are left out.
    """
    names = sorted(set.intersection(*({name for name, of in each.items() if of is not None} for each in metrics)))
    values = {name: [float(each[name]) for each in metrics] for name in names if not name.endswith("/epoch")}
    return {name: {"mean": mean(of), "std": stdev(of), "folds": of} for name, of in values.items()}


def print_spread(spread: Mapping[str, Any], title: str) -> None:
    """Print what :func:`summarize` returned as a table."""
    told = {name: of for name, of in spread.items() if name.startswith(("train/", "val/"))}  # the file has all
    rows = [(name, of["mean"], of["std"], min(of["folds"]), max(of["folds"])) for name, of in told.items()]
    console.table(("metric", "mean", "± std", "lowest", "highest"), rows, title)
