"""The rules of going on with a run or measuring it: what its config, its checkpoint and the command line decide."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.cli.console import command
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import BROKEN
from transferkit.training.checkpoints import is_within_epoch

SPLITTING = ("val_fraction", "test_fraction", "split_seed", "n_per_class")
MOVABLE = ("root", "image_root", "num_workers", "splits")  # what a resumed fit may change and end with the same weights
GEOMETRY = ("accumulate_grad_batches", "limit_train_batches")  # steps per epoch; a checkpoint knows its processes

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far the fit of a checkpoint is.

    Attributes:
        epochs: how many have ended.
        within_epoch: whether another one has begun.
    """

    epochs: int = 0
    within_epoch: bool = False


def progress_of(content: Mapping[str, Any], path: Path) -> Progress:
    """Read from a checkpoint how far its fit is.

    Raises:
        UserError: it holds no state to resume from.
    """
    try:
        if "optimizer_states" not in content:
            raise KeyError("optimizer_states")
        epochs = int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        return Progress(epochs, is_within_epoch(content))
    except BROKEN as error:
        raise UserError(
            f"{path} holds weights only, not the state of a fit; start a new fit with --model.backbone {path}"
        ) from error


def check_same_fit(saved: Section, wanted: Section, run: Path) -> None:
    """Refuse to go on with another model or other data: the optimizer's state and the splits belong to them.

    Args:
        saved: the run's configuration.
        wanted: today's.
        run: its directory.

    Raises:
        UserError: naming the option.
    """
    for section in ("model", "data"):
        for field, value in wanted[section].items():
            before = saved[section].get(field, value)
            if before != value and not (section == "data" and field in MOVABLE):
                again = command("fit", "--name", run.parent.name, "--ckpt_path", "last")
                raise UserError(
                    f"--{section}.{field} {value}, given or in a config, differs from the {before} that "
                    f"{run} was started with; resume with: {again}, or start a new fit"
                )


def check_progress(saved: Section, wanted: Section, progress: Progress) -> None:
    """Refuse an end that has been passed, and other steps per epoch within one.

    Args:
        saved: the Trainer's options of the run.
        wanted: today's.
        progress: of the checkpoint.

    Raises:
        UserError: naming the option.
    """
    epochs = wanted.get("max_epochs")
    if epochs is not None and 0 <= epochs < progress.epochs:
        raise UserError(
            f"--trainer.max_epochs is {epochs}, the checkpoint has {progress.epochs} epochs behind it; "
            "give more, or start a new fit"
        )
    for field in GEOMETRY if progress.within_epoch else ():
        before, value = saved.get(field), wanted.get(field)
        if before != value:
            raise UserError(
                f"--trainer.{field} {value} differs from the {before} of the run, whose checkpoint is of the midst of "
                "an epoch; leave it out, or start a new fit"
            )


def recorded_splits(data: Section, saved: Section | None, recorded: Path | None, verb: str) -> str | None:
    """The splits of the run that goes on or is evaluated; None if it is to look at other data.

    Args:
        data: today's options.
        saved: those of the run; None for a new one.
        recorded: the file that holds its splits, if there is one.
        verb: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: an option asks for other splits of the same data.
    """
    if data["splits"] or verb == "predict" or recorded is None or saved is None:
        return None if data["splits"] is None else str(data["splits"])
    if verb != "fit" and data["root"] != saved.get("root"):
        return None
    for field in SPLITTING:
        if data[field] != saved.get(field, data[field]):
            raise UserError(f"--data.{field} {data[field]}: the splits are those of {recorded.parent}; leave it out")
    return str(recorded)


def decided_by(place: Path, l2_normalize: bool | None) -> dict[str, Any]:
    """The options of the model that a checkpoint or an export decides when it is measured.

    Args:
        place: the checkpoint or the directory.
        l2_normalize: whether its head reads normalized embeddings; None is as it says itself.
    """
    return {
        "backbone": str(place),
        "weights": "DEFAULT",
        "regime": "frozen",
        "pooling": None,
        "l2_normalize": l2_normalize,
        "head": None,
        "preprocessing": None,
        "architecture": None,
    }
