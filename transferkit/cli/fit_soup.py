"""``fit --soup N``: N fits from one start in other orders, and a run with the average that is best on val."""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli import console
from transferkit.cli.arguments import as_root, read_setting, read_yaml, without_option
from transferkit.cli.fit_series import Kind, Series, files_of, fit_series, plan_series
from transferkit.cli.run_results import results
from transferkit.errors import UserError
from transferkit.reports.report import report_of
from transferkit.runtime.files import discard
from transferkit.runtime.json_files import write_json

if TYPE_CHECKING:
    from transferkit.training.soup import Ingredient

OF_TRAINER = ("accelerator", "devices", "precision", "limit_val_batches", "deterministic")  # what a measurement needs
SOUP = Kind("soup", "soup", "--soup 0/3, 1/3, ...", "ingredient")


def ingredient_of(soup: str | None) -> int:
    """Return the number of the fit that ``I/N`` means; 0 for a fit that belongs to no soup.

    Raises:
        UserError: it means none.
    """
    if soup is None:
        return 0
    number, _, count = soup.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--soup is {soup}; give a number of fits, 2 or more, or one of them, from 0, such as 0/3")
    return int(number)


def check_ingredient(soup: str | None, solves: bool) -> None:
    """Raise if all fits of a soup would be the same.

    Args:
        soup: the option.
        solves: whether the head is solved for.

    Raises:
        UserError: they would.
    """
    if soup is not None and solves:
        raise UserError(
            "--soup averages fits that differ, but the optimal head of a frozen backbone is always the same one; "
            "leave out --soup, or fine-tune with another --model.regime"
        )


def plan_soup(arguments: Sequence[str]) -> Series | None:
    """Return the plan of a soup; None for any other fit, one of its ingredients included.

    Raises:
        UserError: not a number of fits; options that a soup does not take.
    """
    arguments = as_root("fit", arguments)
    count = read_setting(arguments, files_of(arguments), "soup")
    asks = any(argument.startswith("--print_config") for argument in arguments)
    if count in (None, "null") or "/" in str(count) or asks:
        return None
    return plan_series(SOUP, str(count), without_option(arguments, "--soup"))


def fit_soup(plan: Series, fit: Callable[[list[str]], int]) -> int:
    """Fit every ingredient that is not done yet, and write the soup as the last run; return the exit status.

    Args:
        plan: what to fit.
        fit: runs one command.

    Raises:
        UserError: of any fit; or an ingredient was not measured on val.
    """
    begin = time.time()
    parent = fit_series(plan, fit, lambda number: ["--soup", f"{number}/{plan.count}"])
    runs = [parent / str(number) for number in range(plan.count)]
    soup = parent / str(plan.count)
    discard(soup)  # of a command that was killed here
    monitor, ingredients = write_soup(runs, soup)
    finish(plan, parent, soup, monitor, ingredients, begin)
    return 0


def write_soup(runs: Sequence[Path], soup: Path) -> tuple[str, list["Ingredient"]]:
    """Write the run of the soup; return the metric that decided, and the ingredients."""
    from transferkit.data.datamodule import ImageDataModule
    from transferkit.training.checkpoints import AtomicCheckpointIO
    from transferkit.training.module import TransferModule
    from transferkit.training.run_directory import write_config, write_metrics
    from transferkit.training.soup import greedy_average, measure_on_val
    from transferkit.training.trainer import chosen_metrics, make_trainer

    config = {key: value for key, value in read_yaml(runs[0] / "config.yaml").items() if key != "soup"}
    data = ImageDataModule(**config["data"])
    data.configure(splits=str(runs[0] / "splits.parquet"))
    module = TransferModule(**{**config["model"], "seed": config["seed_everything"]})
    module.connect(data, "fit")
    data.check_images(("train", "val"))
    given = {name: config["trainer"][name] for name in OF_TRAINER if config["trainer"].get(name) is not None}
    trainer = make_trainer(soup, checkpoints=False, logger=False, enable_progress_bar=False, **given)
    measure = partial(measure_on_val, module=module, data=data, trainer=trainer)
    monitor = module.task.monitor
    content, ingredients = greedy_average([run / "checkpoints" / "best.ckpt" for run in runs], monitor, measure)
    (soup / "checkpoints").mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint(content, soup / "checkpoints" / "best.ckpt")
    shutil.copyfile(runs[0] / "splits.parquet", soup / "splits.parquet")
    write_config(soup, config)
    write_metrics(soup, chosen_metrics(soup)[1])
    report_of(soup, images=data.root, image_root=data.image_root)
    return monitor, ingredients


def finish(
    plan: Series, parent: Path, soup: Path, monitor: str, ingredients: Sequence["Ingredient"], begin: float
) -> None:
    """Write and print what became of each ingredient, and the metrics of the soup."""
    from transferkit.training.run_directory import read_metrics

    values = read_metrics(soup)
    rows: list[dict[str, Any]] = [
        {"run": str(parent / str(one.number)), monitor: one.score, "soup with it": one.tried, "kept": one.kept}
        for one in ingredients
    ]
    write_json(
        plan.record(parent),
        {"soup": plan.count, "run": str(soup), "ingredients": rows, "metrics": values, "given": plan.given},
    )
    if not plan.json:
        cells = [[*list(row.values())[:-1], "yes" if row["kept"] else "no"] for row in rows]
        console.table(list(rows[0]), cells, f"{soup}: {sum(one.kept for one in ingredients)} of {plan.count} fits")
    results(soup, begin, values, plan.json, {"ingredients": rows})
    console.next_command("test", "--ckpt_path", soup / "checkpoints" / "best.ckpt")
