"""Reading weights from files: tensors only."""

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from transferkit.errors import UserError, first_line, listed

log = logging.getLogger(__name__)

INDEX = ".index.json"
# What a folder of weights holds, the first that there is.
FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")  # where training scripts keep it, the best first
# Modules of the options, paths and scores that training scripts save beside the weights.
BESIDE = (
    *("argparse", "collections", "datetime", "easydict", "lightning", "lightning_fabric", "ml_collections", "mmengine"),
    *("numpy", "omegaconf", "pathlib", "pytorch_lightning", "types", "typing", "yacs"),
)


class LeftOut:
    """Stands for an object beside the weights, whose class is neither imported nor called."""

    def __new__(cls, *args: object) -> Self:
        """Take what the object would be made from."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Take what the object would hold."""


def read_tensors(path: str | Path) -> Any:
    """Read a ``.safetensors`` file, or plain types and tensors that ``torch.save`` wrote, on the CPU.

    Raises:
        UserError: it is another file, or holds anything else; code in it is refused, never run.
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


def read_weights(path: Path) -> Any:
    """Read a file as :func:`read_tensors` does, without the options and scores that are beside the weights.

    Raises:
        UserError: see :func:`read_tensors`.
    """
    try:
        return read_tensors(path)
    except UserError:
        beside = names_beside(path)
        if not beside:
            raise
    # A class of that name is a dict of settings, which is filled; the others are built from arguments.
    stand_ins: list[Any] = [(OrderedDict if name.endswith("Dict") else LeftOut, name) for name in beside]
    with torch.serialization.safe_globals(stand_ins):
        content = read_tensors(path)
    log.warning("left out of %s what is not a tensor: %s", path, listed(beside, quote=False))
    return content


def names_beside(path: Path) -> list[str]:
    """Return the classes of options and scores in a file of ``torch.save``; none if it is another kind, or broken."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it raises whatever such a file makes it raise
        return []
    return sorted(name for name in named if name.partition(".")[0] in BESIDE)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file that :func:`read_tensors` takes, from several by their index, or from a folder.

    A state dict inside a dict, as training scripts save it, is unwrapped.

    Raises:
        UserError: there is no such file, or it holds anything but tensors.
    """
    path = file_in(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist; give a .safetensors file or a saved state dict")
    content = read_parts(path) if path.name.endswith(INDEX) else read_weights(path)
    while isinstance(content, Mapping) and not is_state(content):
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
        states = [key for key, value in inner.items() if is_state(value)]
        key = next((key for key in WRAPPERS if key in inner), states[0] if len(states) == 1 else None)
        if key is None:
            break
        if len(states) > 1:
            others = listed(sorted(set(map(str, states)) - {key}))
            log.warning("took %r of %s, which also holds %s", key, path, others)
        content = inner[key]
    if not is_state(content):
        raise UserError(f"{path} does not hold a state dict (name -> tensor); save one with model.state_dict()")
    return dict(content)


def apply_masks(state: MutableMapping[str, Tensor]) -> None:
    """Put ``w`` in the place of ``w_orig`` and ``w_mask``, which is how torch keeps a weight that is pruned for now."""
    for masked in [key for key in state if str(key).endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in state]:
        name = masked.removesuffix("_mask")
        state[name] = state.pop(f"{name}_orig") * state.pop(masked)


def file_in(folder: Path) -> Path:
    """Return the weights file of a folder.

    Raises:
        UserError: it has none.
    """
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has no weights file ({', '.join(FILES)}); give the file itself")
    return found


def read_parts(index: Path) -> dict[str, Tensor]:
    """Read the files that an index (``model.safetensors.index.json``) lists, all of them beside it.

    Raises:
        UserError: the index is broken, lists a file elsewhere, or a tensor that is in none of them.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not an index of weights files ({first_line(error)}); save the model again"
        ) from error
    if away := [name for name in names if Path(name).name != name]:
        raise UserError(f"{index} lists {away[0]!r}, which is not beside it; save the model again")
    state: dict[str, Tensor] = {}
    for name in names:
        state |= read_tensors(index.with_name(name))
    if lost := sorted(set(weight_map) - set(state)):
        raise UserError(f"{index} lists tensors that are in none of its files: {listed(lost)}; save the model again")
    return state


def is_state(content: Any) -> bool:
    """Return whether something maps names to tensors alone."""
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the tensors in the order of their names: name, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
