"""A Trainer that fills a run directory, for the command line, the quickstart and Python."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from transferkit.extractor.checkpoint_reader import KEY, epoch_of, load
from transferkit.reports.answers import Answering
from transferkit.training.checkpoints import AtomicCheckpointIO
from transferkit.training.fit_progress import epoch_number
from transferkit.training.module import TransferModule
from transferkit.training.predict_images import TOP_K
from transferkit.training.prediction_writer import PredictionWriter
from transferkit.training.run_directory import checkpoint_of
from transferkit.training.run_record import Checkpoints
from transferkit.training.trainer_options import automatic_precision

SMALL_HEAD = 2**17  # weights: 170 classes of a ViT-B/16's 768 features
TRAINER_DEFAULTS: Mapping[str, Any] = {
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 0,  # everything is logged per epoch
    "enable_model_summary": False,
    "default_root_dir": ".",
}


def run_parts(
    run: Path,
    checkpoints: bool = True,
    top_k: int = TOP_K,
    answering: Answering | None = None,
    calibrates: bool = True,
) -> tuple[list[Callback], list[Logger]]:
    """Return the callbacks and loggers that fill a run directory."""
    writer = PredictionWriter(run, top_k, answering, calibrates)
    callbacks = [SingleThreadSmallHead(), writer, Checkpoints(run, checkpoints)]
    return callbacks, [RunTensorBoardLogger(run, name="", version="")]


class SingleThreadSmallHead(Callback):
    """Train a small head on cached embeddings with one thread: a step is too short to share among several."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use one thread while a small head is trained."""
        self.threads = torch.get_num_threads()
        if not isinstance(pl_module, TransferModule):  # it has no features
            return
        assert pl_module.head is not None
        if pl_module.data.features and not pl_module.cut and pl_module.head.weight.numel() <= SMALL_HEAD:
            torch.set_num_threads(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the thread count."""
        torch.set_num_threads(self.threads)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the thread count."""
        torch.set_num_threads(getattr(self, "threads", torch.get_num_threads()))


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard logger that writes into the run directory itself, with epochs as in ``metrics.csv``.

    Attributes:
        trainer: whose epochs they are.
    """

    trainer: Trainer | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics with the epoch from 1, and 0 before the first step; Lightning's begins with 0 in both."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            values["epoch"] = epoch_number(self.trainer)
        super().log_metrics(values, step)

    def save(self) -> None:
        """Flush the events, without Lightning's ``hparams.yaml``: the run has its ``config.yaml``."""
        self.experiment.flush()


def make_trainer(
    run: Path,
    checkpoints: bool = True,
    top_k: int = TOP_K,
    answering: Answering | None = None,
    calibrates: bool = True,
    tensorboard: bool = True,
    **options: Any,
) -> Trainer:
    """Return a Trainer that fills a run directory; the user's loggers are added to the run's own.

    Args:
        run: the run directory.
        checkpoints: whether to write ``best.ckpt`` and ``last.ckpt``.
        top_k: number of classes per image that ``predict`` ranks.
        answering: what ``predict`` says beside the classes, if the classifier is calibrated.
        calibrates: whether ``test`` calibrates the classifier, which embeds images of val and train.
        tensorboard: whether to log into the run.
        options: arguments of :class:`lightning.pytorch.Trainer`; ``logger=False`` is none at all, ``precision`` may be
            ``auto``, see :func:`~transferkit.training.trainer_options.automatic_precision`.
    """
    given = {**TRAINER_DEFAULTS, **options}
    if given.get("precision") == "auto":
        given["precision"] = automatic_precision(given.get("accelerator"))
    callbacks, loggers = run_parts(run, checkpoints, top_k, answering, calibrates)
    callbacks += as_list(given.pop("callbacks", None))
    plugins = as_list(given.pop("plugins", None))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    if given.get("logger") is not False:
        own = [] if given.get("logger") is True else as_list(given.get("logger"))
        given["logger"] = [*(loggers if tensorboard else []), *own] or False
    trainer = Trainer(callbacks=callbacks, plugins=plugins, **given)
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoardLogger):
            logger.trainer = trainer
    return trainer


def users_loggers(trainer: Trainer) -> list[Logger]:
    """Return the loggers that the user gave."""
    return [logger for logger in trainer.loggers if not isinstance(logger, RunTensorBoardLogger)]


def as_list(value: Any) -> list[Any]:
    """Return an argument of the Trainer that may be one, several or None as a list."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def chosen_metrics(run: Path) -> tuple[str, dict[str, float], int | None]:
    """Find the checkpoint to use from a run: ``best.ckpt``, or ``last.ckpt`` if no epoch was validated.

    Returns:
        Its name, empty if there is no checkpoint; the metrics of its weights, for ``best.ckpt`` with ``val/epoch``;
        and its epoch, from 1.
    """
    path = checkpoint_of(run)
    if path is None:
        return "", {}, None
    content = load(path)
    epoch, metrics = epoch_of(content), dict(content[KEY]["metrics"])
    return path.name, metrics | ({"val/epoch": epoch} if path.name == "best.ckpt" else {}), epoch


def quiet_libraries() -> None:
    """Silence Lightning's INFO messages; keep its warnings, except two that need no action.

    Frozen stages are in eval mode by design, and Lightning 2.6 itself calls a function that torch 2.14 deprecates.
    """
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what :func:`quiet_libraries` silences, within the block."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        quiet_libraries()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch and the loading processes."""
    lightning.seed_everything(seed, workers=True, verbose=False)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with a number of threads, and restore the number before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
