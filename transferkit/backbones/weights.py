"""Reading weights from files: tensors only."""

import hashlib
import logging
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from transferkit.errors import UserError, first_line

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")  # where training scripts keep it, best first


def read_tensors(path: str | Path) -> Any:
    """Read a ``.safetensors`` file, or plain types and tensors that ``torch.save`` wrote, on the CPU.

    Raises:
        UserError: it is no such file, or holds anything else; code in it is refused, never run.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise whatever a broken or hostile file makes them raise
        raise UserError(
            f"{path} is not a weights file ({first_line(error)}); "
            "give a .safetensors file or a state dict saved with torch.save(model.state_dict(), FILE)"
        ) from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file that :func:`read_tensors` takes.

    A state dict that lies in a dict, as training scripts save it, is unwrapped.

    Raises:
        UserError: no such file, or a file that holds anything but tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"weights file {path} does not exist; give a .safetensors file or a saved state dict")
    content = read_tensors(path)
    while isinstance(content, Mapping) and not is_state(content):
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
        states = [key for key, value in inner.items() if is_state(value)]
        key = next((key for key in WRAPPERS if key in inner), states[0] if len(states) == 1 else None)
        if key is None:
            break
        if len(states) > 1:
            log.warning("took %r of %s, which also holds %s", key, path, ", ".join(map(repr, set(states) - {key})))
        content = inner[key]
    if not is_state(content):
        raise UserError(f"{path} holds no state dict (name -> tensor); save one with model.state_dict()")
    return dict(content)


def apply_masks(state: MutableMapping[str, Tensor]) -> None:
    """Put ``w`` in the place of ``w_orig`` and ``w_mask``, which is how torch keeps a weight that is pruned for now."""
    for masked in [key for key in state if key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in state]:
        name = masked.removesuffix("_mask")
        state[name] = state.pop(f"{name}_orig") * state.pop(masked)


def is_state(content: Any) -> bool:
    """Whether something maps names to tensors alone."""
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names: name, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
