"""Checkpoints: written whole, loaded without running code, without frozen weights until the fit has ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from transferkit.backbones.weights import state_sha256
from transferkit.errors import UserError
from transferkit.extractor.checkpoint import KEY, load
from transferkit.files import atomic_path


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
                raise UserError(f"cannot write {path}: it could not be written to its end; free room") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load plain types and tensors; anything else is refused, never run."""
        return load(Path(path))


def drop_frozen(checkpoint: dict[str, Any], frozen: set[str]) -> None:
    """Leave weights that training does not change out of a checkpoint: they would be written anew each epoch."""
    state = checkpoint["state_dict"]
    for key in frozen:
        state.pop(f"backbone.{key}", None)
    checkpoint[KEY]["complete"] = not frozen


def restore_frozen(checkpoint: dict[str, Any], own: Mapping[str, Tensor], frozen: set[str]) -> None:
    """Put back what :func:`drop_frozen` left out, from the backbone as it was built again.

    Raises:
        UserError: it was built from other weights.
    """
    if checkpoint[KEY]["complete"]:
        return
    if frozen_sha256(own, frozen) != checkpoint[KEY]["frozen_sha256"]:
        raise UserError(
            "the backbone's weights are not those that the interrupted fit started from; "
            "give the same --model.backbone, --model.weights and --seed_everything, or start a new fit"
        )
    checkpoint["state_dict"] |= {f"backbone.{key}": own[key] for key in frozen}
    checkpoint[KEY]["complete"] = True


def complete(path: Path, own: Mapping[str, Tensor], frozen: set[str]) -> None:
    """Write the frozen weights into a checkpoint file of a fit that has ended, so that it stands alone."""
    checkpoint = load(path)
    if not checkpoint[KEY]["complete"]:
        restore_frozen(checkpoint, own, frozen)
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def frozen_sha256(own: Mapping[str, Tensor], frozen: set[str]) -> str:
    """SHA-256 over the frozen weights."""
    return state_sha256({key: own[key] for key in frozen})
