"""Checkpoints: each file whole under its name, loaded without running code; what is true of the weights in one."""

import copy
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor

from transferkit.backbones.weights import read_tensors
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import KEY
from transferkit.runtime.files import atomic_path

EPOCH = "transferkit_epoch"  # the key of what is known of an epoch that has not ended


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, each under its name only when it is whole, and tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the target and rename.

        Raises:
            UserError: the place cannot be written.
        """
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # all that torch's writer says of a full disk is a wrong position
                raise UserError(f"cannot write {path}: it could not be written to its end; free disk space") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Load plain types and tensors; anything else is refused, never run."""
        return read_tensors(Path(path))


def link(source: Path, target: Path) -> bool:
    """Let two names share the bytes of one file; whether the file system could."""
    try:
        with atomic_path(target) as temporary:
            temporary.unlink()  # the empty file that held its name
            os.link(source, temporary)
    except (OSError, UserError):
        return False
    return True


def snapshot(content: Any, kept: Collection[int] = ()) -> Any:
    """Copy a checkpoint, so that the training that goes on does not change it.

    Args:
        content: dicts, lists and tuples of plain types and tensors.
        kept: addresses of the tensors that nothing changes, which need no copy.

    Returns:
        The same with its tensors copied to the CPU.
    """
    if isinstance(content, Tensor):
        return content if content.data_ptr() in kept else content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        copied: Any = copy.copy(content)  # keeps the type, and the _metadata of a state dict
        for key, value in content.items():
            copied[key] = snapshot(value, kept)
        return copied
    if isinstance(content, list | tuple):
        return type(content)(snapshot(value, kept) for value in content)
    return content


def epochs_of(trainer: Trainer) -> Any:
    """Lightning's counts of epochs: those ``ready``, begun that is, and those ``processed``, whose batches are done."""
    return trainer.fit_loop.epoch_progress.current


def epoch_number(trainer: Trainer) -> int:
    """The epoch, from 1, that the weights are of; 0 before the first."""
    return int(epochs_of(trainer).ready)


def batches_done(trainer: Trainer) -> bool:
    """Whether the last batch of the epoch has been trained on."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return batches.is_last_batch or batches.current.ready >= trainer.num_training_batches


def figures(trainer: Trainer, validated_at: int | None) -> dict[str, float]:
    """The logged values that are of the weights as they stand.

    ``trainer.callback_metrics`` keeps those of an earlier validation, and of the last epoch that ended.

    Args:
        trainer: during a fit, or after it.
        validated_at: the global step of the last validation.
    """
    progress = epochs_of(trainer)
    ended = progress.processed == progress.ready  # no epoch is under way
    validated = validated_at == trainer.global_step
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if (validated if name.startswith("val/") else ended or name.startswith("test/"))
    }


def mend_progress(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Record an epoch as ended where its last batch is done, and only there; a fit resumes right from both.

    Lightning counts an epoch that ``max_steps`` or ``max_time`` cut short as done, and would draw the rest of its
    batches from the next one's order; one that is saved after its last batch it counts as under way, and would go
    on in the next without beginning it.
    """
    if not trainer.num_training_batches:
        return
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    cut = epochs["current"]["processed"] == epochs["current"]["ready"] > 0 and not batches_done(trainer)
    unfinished = batches["current"]["completed"] < batches["current"]["processed"]  # within on_train_batch_end
    for which in ("current", "total"):
        counts = epochs[which]
        if cut:
            counts["processed"] -= 1
            counts["completed"] = min(counts["completed"], counts["processed"])
        elif unfinished and batches["is_last_batch"]:
            counts["processed"] += 1
            batches[which]["completed"] += 1


def leave_ended_epoch(trainer: Trainer) -> None:
    """Let a fit that resumes after the end of an epoch begin the next one.

    Lightning does so where epochs limit the fit. Where ``max_steps`` does, it would end the last epoch once more,
    without a batch; to be called as the training starts.
    """
    loop: Any = trainer.fit_loop
    epochs = loop.epoch_progress
    if loop.restarting and epochs.current.processed == epochs.current.ready > 0:
        for part in (loop, loop.epoch_loop):
            part._restarting = False
            part.reset_restart_stage()
        for counts in (epochs.current, epochs.total):
            counts.completed = counts.processed


def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of an epoch that has begun and not ended."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return bool(progress["processed"] < progress["ready"])


def check_resumable(checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], frozen: Collection[str]) -> None:
    """Refuse to go on from a checkpoint whose frozen weights are not those that the backbone was built with.

    Args:
        checkpoint: of an interrupted fit.
        own: the backbone's state dict; cached embeddings come from it.
        frozen: the keys of what training does not change.

    Raises:
        UserError: they differ, or an earlier version left them out.
    """
    if not checkpoint[KEY]["complete"]:
        raise UserError(
            "the checkpoint was written by an earlier version, within a fit, without the weights that do not learn; "
            "start a new fit"
        )
    state = checkpoint.get("current_model_state", checkpoint["state_dict"])  # an averaging callback's, if there is one
    for key in sorted(frozen):
        stored = state.get(f"backbone.{key}")
        if stored is None or not torch.equal(stored.cpu(), own[key].cpu().to(stored.dtype)):  # bf16-true stores less
            raise UserError(
                "the backbone's weights are not those that the interrupted fit started from; "
                "give the same --model.backbone, --model.weights and --seed_everything, or start a new fit"
            )
