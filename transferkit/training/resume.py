"""The rules of resuming and evaluating a run, as functions of its config and of the options given now."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.data.image_table import kept_image_root
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import BROKEN, KEY

SPLIT_OPTIONS = (
    "val_fraction",
    "test_fraction",
    "split_seed",
    "n_per_class",
    "folds",
    "fold",
)  # data options that decide the splits
MOVABLE = ("root", "image_root", "num_workers", "splits")  # data options that do not change the resulting weights
OF_THESE_IMAGES = ("image_root", "splits", "exclude", "classes", "sample_weights")  # data options that name images
STEPS_PER_EPOCH = ("accumulate_grad_batches", "limit_train_batches")  # a checkpoint also records its processes

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """Progress of the fit that wrote a checkpoint.

    Attributes:
        epochs: number of completed epochs.
        within_epoch: whether another epoch has begun.
        steps: number of completed steps of the optimizer.
    """

    epochs: int = 0
    within_epoch: bool = False
    steps: int = 0


def progress_of(content: Mapping[str, Any], path: Path) -> Progress:
    """Return the progress of the fit that wrote a checkpoint.

    Args:
        content: of the checkpoint.
        path: its file, for the message.

    Raises:
        UserError: the checkpoint holds no state to resume from.
    """
    try:
        for state in content["optimizer_states"]:
            state["param_groups"][0].keys()
        epochs = int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        return Progress(epochs, is_within_epoch(content), int(content["global_step"]))
    except (*BROKEN, IndexError) as error:
        raise UserError(
            f'{path} holds weights only, not the state of a fit; start a new fit with `backbone="{path}"`'
        ) from error


def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was written within an epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return bool(progress["processed"] < progress["ready"])


def check_same_fit(saved: Section, wanted: Section, run: Path) -> None:
    """Raise if model or data differ from those of the run: its optimizer state and splits depend on them.

    Args:
        saved: the configuration of the run, by section.
        wanted: the configuration given now.
        run: directory of the run.

    Raises:
        UserError: naming the argument that differs.
    """
    for section in ("model", "data"):
        for field, value in wanted[section].items():
            before = saved[section].get(field, value)
            if before != value and not (section == "data" and field in MOVABLE):
                raise UserError(
                    f"`{field}={value}`, given or in a config, differs from the {before} that {run} was started with; "
                    f'resume with `name="{run.parent.name}"` `ckpt_path="last"` alone, or start a new fit'
                )


def check_progress(saved: Section, wanted: Section, progress: Progress) -> None:
    """Raise if the fit would end before it resumes, or if the steps per epoch change within an epoch.

    Args:
        saved: the Trainer's options of the run.
        wanted: the Trainer's options given now.
        progress: that of the checkpoint.

    Raises:
        UserError: naming the argument.
    """
    for field, done in (("max_epochs", progress.epochs), ("max_steps", progress.steps)):
        end = wanted.get(field)
        if end is not None and 0 <= end < done:
            raise UserError(f"`{field}` is {end}, the checkpoint has completed {done}; give more, or start a new fit")
    for field in STEPS_PER_EPOCH if progress.within_epoch else ():
        before, value = saved.get(field), wanted.get(field)
        if before != value:
            raise UserError(
                f"`{field}={value}` differs from the {before} of the run, and the checkpoint is from within an epoch; "
                "leave it out, or start a new fit"
            )


def recorded_splits(data: Section, saved: Section | None, recorded: Path | None, verb: str) -> str | None:
    """Return the file of the splits to use; None to split the data again.

    Args:
        data: the data's options given now.
        saved: those of the run; None for a new run.
        recorded: the file with the splits of the run, if there is one.
        verb: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: an option asks for other splits of the same data.
    """
    if data["splits"] or verb == "predict" or recorded is None or saved is None:
        return None if data["splits"] is None else str(data["splits"])
    if verb != "fit" and not same_place(data["root"], saved.get("root")):
        return None
    for field in SPLIT_OPTIONS:
        if data[field] != saved.get(field, data[field]):
            raise UserError(f"`{field}={data[field]}`: the splits are those of {recorded.parent}; leave it out")
    return str(recorded)


def same_place(one: str | None, other: str | None) -> bool:
    """Return whether two sources of images are the same folder, file or name, however it is written."""
    if not one or not other:
        return one == other
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def data_for(saved: Section, root: str | None) -> dict[str, Any]:
    """Return the data options of a run for the images that are evaluated: what names its own images is not for others.

    Another manifest of images in the same ``image_root`` keeps what names them, but not their splits.

    Args:
        saved: the data options of the run.
        root: the images given now; None for those of the run.
    """
    if root is None or same_place(root, saved.get("root")):
        return dict(saved)
    keeps = kept_image_root(saved.get("image_root"), root) is not None
    left_out = ("splits",) if keeps else OF_THESE_IMAGES
    return {name: value for name, value in saved.items() if name not in left_out}


def decided_by(source: Path, l2_normalize: bool | None) -> dict[str, Any]:
    """Return the model options that are fixed when a checkpoint or an export is evaluated.

    Args:
        source: the checkpoint or the directory of the export.
        l2_normalize: whether its head reads L2-normalized embeddings; None keeps what it records.
    """
    return {
        "backbone": str(source),
        "weights": "DEFAULT",
        "regime": "frozen",
        "pooling": None,
        "l2_normalize": l2_normalize,
        "head": None,
        "preprocessing": None,
        "architecture": None,
        "revision": None,
    }


def check_processes(state: Mapping[str, Any], processes: int) -> None:
    """Raise if the rest of an epoch would consist of other images, because it was shared by other processes.

    Args:
        state: of an epoch that has not ended, as a checkpoint holds it.
        processes: of this fit.

    Raises:
        UserError: there are more or fewer processes than before.
    """
    before = state.get("processes", processes)
    if before != processes:
        raise UserError(
            f"the checkpoint was written within an epoch that {before} processes shared, this fit has {processes}; "
            "give as many with `devices` and `num_nodes`, or start a new fit"
        )


def resumed_solver(checkpoint: Mapping[str, Any], regime: str, optimizer: str, solves: bool) -> bool:
    """Return whether a resumed fit solves for its head: ``auto`` keeps the kind of optimizer of the checkpoint.

    Args:
        checkpoint: of an interrupted fit.
        regime: of this fit.
        optimizer: the option of this fit.
        solves: whether a new fit with these options would solve for its head.

    Raises:
        UserError: the regime or the optimizer differs, or the checkpoint has weights only.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError("the checkpoint holds weights only, not the state of a fit; start a new fit from it")
    before = checkpoint[KEY].get("regime", regime)
    if before != regime:
        raise UserError(f"the checkpoint is of a fit with regime {before}, this one has {regime}; give the same")
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    kind = "lbfgs" if "C" in group else "adamw" if "betas" in group else "sgd"
    if solves and optimizer == "auto" and kind == "adamw":  # the choice of earlier versions
        return False
    now = "lbfgs" if solves else "sgd" if optimizer == "sgd" else "adamw"
    if kind != now:
        raise UserError(f"the checkpoint is of a fit with optimizer {kind}, this one has {now}; give the same")
    return solves
