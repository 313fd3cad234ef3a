"""``fit`` from Python: what the verb does, in one call."""

import difflib
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.memory_table import MemoryTable, Split
from transferkit.data.option_ranges import check_values
from transferkit.data.splits import save_splits
from transferkit.errors import UserError
from transferkit.runtime.plain_types import plain
from transferkit.runtime.verbosity import showing_progress
from transferkit.training.epoch_lines import progress_callbacks
from transferkit.training.module import TransferModule
from transferkit.training.run import Run
from transferkit.training.run_directory import new_run, remove_unsaved, write_config, write_metrics
from transferkit.training.trackers import offline_by_default, record_files, record_options
from transferkit.training.trainer import (
    TRAINER_DEFAULTS,
    as_list,
    chosen_metrics,
    make_trainer,
    quietly,
    seed_everything,
    users_loggers,
)
from transferkit.training.trainer_options import (
    automatic_precision,
    check_callbacks,
    check_loggers,
    check_options,
    refusal,
)

OWNERS = (TransferModule, ImageDataModule, Trainer)  # of the options of fit


def fit(
    images: Any,
    labels: Sequence[Any] | None = None,
    *,
    splits: Sequence[str | None] | None = None,
    split: Split | None = None,
    targets: Sequence[Any] | None = None,
    transform: Callable[[Tensor], Any] | None = None,
    callbacks: Callback | Sequence[Callback] | None = None,
    name: str = "fit",
    out: str | Path = ".",
    seed: int = 0,
    progress: bool = False,
    report: bool = True,
    **options: Any,
) -> Run:
    """Train a linear head on images, or fine-tune, and return the run.

    ``fit("photos")`` or ``fit(images, labels, backbone="resnet18", max_epochs=5)``. Nothing is printed unless
    ``progress`` is true. Trackers (``logger``) record beside the run's own files, offline by default. It runs in this
    process alone, on one device; several are for the command line or Lightning's own Trainer.

    Args:
        images: folder, manifest or ``digits``; or a list, iterator or dataset as for ``Extractor.embed``; or an
            :class:`~transferkit.data.datamodule.ImageDataModule`.
        labels: class of each image (with ``multilabel=True`` a list of them); by default that of the folder or the
            dataset. They are made to text, so that the classes of 2 and 10 are ``"10"`` and ``"2"``, in that order.
        splits: ``train``, ``val``, ``test`` or None of each image; of None, val and test are drawn.
        split: a function that returns the splits of paths and labels.
        targets: number of each image, to predict instead of a class.
        transform: random change of a training image, uint8 (3, H, W).
        callbacks: of Lightning, added to the run's own.
        name: of the run.
        out: where ``runs/NAME/NUMBER`` is made.
        seed: of a new head's weights, the order of batches, augmentation and dropout.
        progress: show the epochs, and a bar on a terminal or in a notebook.
        report: write ``report.html``.
        options: of :class:`~transferkit.training.module.TransferModule` (``backbone``, ``regime``, ``lr_head``), of
            :class:`~transferkit.data.datamodule.ImageDataModule` (``batch_size``, ``val_fraction``) and of
            Lightning's Trainer (``max_epochs``, ``accelerator``, ``logger``); also their others.

    Returns:
        The run, with its metrics.

    Raises:
        UserError: an argument is unknown, or the data or an option cannot be used; the message names it.
    """
    model, data_options, trainer_options = sorted_options(options)
    devices = trainer_options.setdefault("devices", 1)  # one index in a list is a GPU
    if (len(devices) if isinstance(devices, list | tuple) else devices) not in (1, "1"):
        raise UserError(f"`devices` is {devices!r}, and fit runs in one process; give 1, or call Lightning's Trainer")
    defaults = {name: each.default for name, each in inspect.signature(Trainer).parameters.items()}
    check_options(defaults | trainer_options)
    check_loggers(trainer_options.get("logger"))
    if not (isinstance(seed, numbers.Integral) and 0 <= seed < 2**32):
        raise UserError(f"`seed` is {seed!r}; give a whole number from 0 to {2**32 - 1}")
    seed = int(seed)
    seed_everything(seed)
    module = TransferModule(**model, seed=seed)
    if isinstance(images, ImageDataModule):
        data = images
        beside = {"labels": labels, "splits": splits, "split": split, "targets": targets, "transform": transform}
        if given := [key for key, value in beside.items() if value is not None]:
            raise UserError(f"{given[0]} is given beside an ImageDataModule; give it to ImageDataModule.from_images")
        if data_options:
            raise UserError(f"`{next(iter(data_options))}` is given beside an ImageDataModule; give it to that")
    else:
        data = ImageDataModule.from_images(
            images, labels, splits=splits, split=split, targets=targets, transform=transform, **data_options
        )
    if trainer_options.get("precision") == "auto":  # resolved here, since a config holds what it came to
        trainer_options["precision"] = automatic_precision(trainer_options.get("accelerator"), module.regime)
    own = as_list(callbacks)
    offline_by_default()
    with quietly(), showing_progress(progress):
        module.connect(data, "fit")
        check_callbacks(own, module.logged_names)
        run, trainer = new_run(Path(out), name), None
        try:
            trainer_options["enable_progress_bar"], shown = (
                progress_callbacks(progress, own) if progress else (False, [])
            )
            trainer = make_trainer(run, callbacks=[*own, *shown], default_root_dir=str(out), **trainer_options)
            config = configuration(module, data, trainer_options, seed, name, str(out))
            record_options(trainer, users_loggers(trainer), config)
            record(run, config, data)
            trainer.fit(module, datamodule=data)
        except BaseException as error:
            remove_unsaved(run)
            refused = None if isinstance(error, UserError) else refusal(error, before_training=trainer is None)
            if refused is None:
                raise
            raise refused from error
        finish(trainer, run, data, report)
    return Run(run, data)


def finish(trainer: Trainer, run: Path, data: ImageDataModule, report: bool) -> None:
    """Write the metrics of the best checkpoint and the report, and give them to the trackers."""
    checkpoint, values, _ = chosen_metrics(run)
    write_metrics(run, values)
    if report:
        Run(run, data).report()
    record_files(users_loggers(trainer), run, run / "checkpoints" / checkpoint)


def sorted_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sort options into those of the module, of the data and of the Trainer.

    Raises:
        UserError: one is unknown, with the most similar name; or is not a number where one is expected.
    """
    owners = [set(inspect.signature(owner).parameters) for owner in OWNERS]
    owners[1].discard("root")  # it is the first argument
    owners[2] -= {"default_root_dir", "enable_progress_bar"}  # they are `out` and `progress`
    found: tuple[dict[str, Any], ...] = ({}, {}, {})
    for key, value in plain(options).items():
        number = next((number for number, names in enumerate(owners) if key in names), None)
        if number is None:
            near = difflib.get_close_matches(key, set().union(*owners), n=1)
            raise UserError(f"fit has no argument {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        found[number][key] = value
    for owner, given in zip(OWNERS, found, strict=True):
        check_values(owner, given)
    return found[0], found[1], found[2]


def configuration(
    module: TransferModule, data: ImageDataModule, trainer: Mapping[str, Any], seed: int, name: str, out: str
) -> dict[str, Any]:
    """Return what ``config.yaml`` holds; what is not plain is left out."""
    model = {key: value for key, value in module.hparams.items() if key != "seed"}
    root = str(data.root) if not isinstance(data.given, MemoryTable) else ""
    return {
        "seed_everything": seed,
        "trainer": for_yaml({**TRAINER_DEFAULTS, "default_root_dir": out, **trainer}),
        "model": for_yaml(model),
        "data": for_yaml({**data.hparams, "root": root}),
        "name": name,
    }


def for_yaml(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that YAML can hold."""
    kept = {}
    for key, value in values.items():
        try:
            yaml.safe_dump(value)
        except yaml.YAMLError:
            continue
        kept[key] = value
    return kept


def record(run: Path, config: Mapping[str, Any], data: ImageDataModule) -> None:
    """Write ``config.yaml`` and ``splits.parquet``."""
    if data.tables:
        save_splits(data.table, run / "splits.parquet")
    write_config(run, config)
