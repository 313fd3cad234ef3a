"""Checkpoints: written atomically, loaded without running code; their metrics, and the checks before resuming."""

import copy
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor, nn

from transferkit.backbones.weights import read_tensors
from transferkit.data.sample_weights import SampleWeights
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import KEY
from transferkit.runtime.files import atomic_path
from transferkit.runtime.plain_types import not_plain, plain
from transferkit.training.fit_progress import batches_done, epochs_of

log = logging.getLogger(__name__)

TENSORS = (Tensor, torch.dtype, torch.device, torch.Size)
EPOCH = "transferkit_epoch"  # key of the state of an epoch that has not ended


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically and read as tensors and plain types only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the target and rename.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's writer reports a full disk only as an unexpected position
                raise UserError(f"cannot write {path} completely; free some disk space") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Load plain types and tensors; raise for anything else, without running it."""
        return read_tensors(Path(path))


def link(source: Path, target: Path) -> bool:
    """Make ``target`` a hard link to ``source``; return whether the file system supports it."""
    try:
        with atomic_path(target) as temporary:
            temporary.unlink()  # the empty file that reserves its name
            os.link(source, temporary)
    except (OSError, UserError):
        return False
    return True


def snapshot(content: Any, kept: Collection[int] = ()) -> Any:
    """Copy a checkpoint, so that further training does not change it.

    Args:
        content: dicts, lists and tuples of plain types and tensors.
        kept: addresses of tensors that training does not change and that need no copy.

    Returns:
        The same content with its tensors copied to the CPU.
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


def current_metrics(trainer: Trainer, validated_at: int | None) -> dict[str, float]:
    """Return the logged values that were measured on the weights as they are now.

    ``trainer.callback_metrics`` also keeps those of an earlier validation and of the last epoch that ended.

    Args:
        trainer: during a fit, or after it.
        validated_at: global step of the last validation.
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
    """Record an epoch as ended if, and only if, its last batch is done; a fit resumes correctly from both.

    Lightning counts an epoch that ``max_steps`` or ``max_time`` ended early as done, and would draw its remaining
    batches from the order of the next epoch. It counts an epoch that is saved after its last batch as under way, and
    would continue in the next one without beginning it.
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


def keep_readable(checkpoint: dict[str, Any]) -> None:
    """Leave out of a checkpoint what could not be read without running code, and say so; changes it in place.

    Callbacks and data may keep any object as their state, subclasses any hyperparameter, and one object of another type
    would make the whole file useless. NumPy's numbers and paths become Python's; arrays in hyperparameters lists.
    """
    for section, content in list(checkpoint.items()):
        if section == "state_dict":
            continue
        checkpoint[section] = content = plain(content, arrays="hyper_parameters" in section)
        if type(content) is dict:
            for name in [name for name in content if not_plain((name, content[name]), TENSORS)]:
                say_left_out(f"{name} of {section}", str(not_plain((name, content.pop(name)), TENSORS)))
        elif kind := not_plain(content, TENSORS):
            checkpoint[section] = []
            say_left_out(section, kind)


@cache  # once per process, not per checkpoint
def say_left_out(what: str, kind: str) -> None:
    """Warn that checkpoints lack something."""
    log.warning(
        "checkpoints are written without %s, which has a value of type %s: a resumed fit begins without it; "
        "give plain types and tensors to keep it",
        what,
        kind,
    )


def same_weights(state: Mapping[str, Tensor], backbone: nn.Module) -> bool:
    """Return whether the state of a module holds the backbone's weights."""
    own = backbone.state_dict()
    return all(torch.equal(state[f"backbone.{name}"].cpu(), value.cpu()) for name, value in own.items())


def check_row_weights(before: str | None, weights: SampleWeights | None) -> None:
    """Raise if the images weigh something else in the loss than in the fit that is resumed.

    Args:
        before: the record of the weights in the checkpoint.
        weights: those of this fit.

    Raises:
        UserError: the content of the file differs.
    """
    now = weights.record if weights else None
    if (before or "").rpartition(" ")[2] != (now or "").rpartition(" ")[2]:  # the hash, without the name
        raise UserError(
            f"`sample_weights` is {now or 'not given'}, the fit began with {before or 'none'}; "
            "give the file as it was, or start a new fit"
        )


def check_resumable(
    checkpoint: Mapping[str, Any], class_names: Sequence[str], own: Mapping[str, Tensor], frozen: Collection[str]
) -> None:
    """Raise if a fit cannot be resumed on this data with this backbone.

    Args:
        checkpoint: of an interrupted fit.
        class_names: classes of the data.
        own: the backbone's state dict; cached embeddings come from it.
        frozen: its keys that training does not change.

    Raises:
        UserError: the classes or the frozen weights differ, or an earlier version left these weights out.
    """
    names = checkpoint[KEY]["class_names"]
    if names != class_names:
        raise UserError(
            f"the checkpoint was trained on the classes {', '.join(names)}, the data has {', '.join(class_names)}; "
            'start a new fit with `backbone="CKPT"`'
        )
    if not checkpoint[KEY]["complete"]:
        raise UserError(
            "the checkpoint was written within a fit by an earlier version, without the frozen weights; start a new fit"
        )
    state = checkpoint.get("current_model_state", checkpoint["state_dict"])  # the former is an averaging callback's
    for key in sorted(frozen):
        stored = state.get(f"backbone.{key}")
        if stored is None or not torch.equal(stored.cpu(), own[key].cpu().to(stored.dtype)):  # bf16-true stores less
            raise UserError(
                "the backbone's weights are not those that the interrupted fit started from; "
                "give the same `backbone`, `weights` and `seed`, or start a new fit"
            )
