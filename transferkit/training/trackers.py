"""Other experiment trackers beside the run's own files: any of Lightning's loggers, offline unless told otherwise."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from transferkit.extractor import Extractor
from transferkit.extractor.model_card import CARD, card

FILES = ("config.yaml", "metrics.json", "metrics.csv", "similarity.json", "report.html")
OFFLINE = {
    "WANDB_MODE": "offline",  # without it, W&B asks for a login
    "MLFLOW_ALLOW_FILE_STORE": "true",  # Lightning's default, which MLflow 3.7 and later otherwise refuse
}


def offline_by_default() -> None:
    """Keep what trackers record on this machine, unless the environment says otherwise (``WANDB_MODE=online``)."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)


def record_options(trainer: Trainer, loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Log the options of a fit, sections joined with slashes, to the user's loggers."""
    if trainer.is_global_zero:
        for logger in loggers:
            logger.log_hyperparams({name: value for name, value in flat(config) if value is not None})


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the entries of a nested mapping, ``model/backbone`` for one in a section."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def record_files(loggers: Iterable[Logger], run: Path, checkpoint: Path | None) -> None:
    """Give configuration, metrics, report and model card of a run to the loggers that keep files.

    These are W&B, MLflow, and any logger with a method ``log_artifacts(folder)``.

    Args:
        loggers: the user's.
        run: the run directory.
        checkpoint: which the model card describes.
    """
    keepers = [
        each for each in loggers if isinstance(each, WandbLogger | MLFlowLogger) or hasattr(each, "log_artifacts")
    ]
    if not keepers:
        return
    with TemporaryDirectory(prefix="transferkit-") as place:
        for name in FILES:
            if (run / name).is_file():
                shutil.copy(run / name, place)
        if checkpoint:
            Path(place, CARD).write_text(card(Extractor.from_pretrained(checkpoint), "base", {}), encoding="utf-8")
        for logger in keepers:
            if isinstance(logger, WandbLogger):
                logger.experiment.log_artifact(place, name=f"run-{logger.experiment.id}", type="run")
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifacts(logger.run_id, place)
            else:
                logger.log_artifacts(place)
