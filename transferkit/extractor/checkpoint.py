"""Reading a training checkpoint without knowing the LightningModule that wrote it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit import backbones
from transferkit.backbones.weights import first_line, read_tensors
from transferkit.errors import UserError
from transferkit.preprocessing import Preprocessing

KEY = "transferkit"
FORMAT = 1


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint's plain types and tensors, on the CPU; code in it is refused, never run.

    Raises:
        UserError: not there, not a transferkit checkpoint, or of a newer format.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; fit writes runs/NAME/NUMBER/checkpoints/best.ckpt")
    content = read_tensors(path)
    record = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(record, dict) or "state_dict" not in content:
        raise UserError(f"{path} is not a transferkit checkpoint; give one that transferkit fit wrote")
    if record.get("format") != FORMAT:
        raise UserError(f"{path} has format {record.get('format')}, this version reads {FORMAT}; update transferkit")
    return dict(content)


def read(path: Path, weights: str, pooling: str | None) -> dict[str, Any]:
    """Arguments of an Extractor, from a checkpoint.

    Raises:
        UserError: see :func:`load`; also options that contradict it, or a fit that has not ended.
    """
    content = load(path)
    record, state = content[KEY], content["state_dict"]
    if weights != "DEFAULT":
        raise UserError(f"{path} brings its own weights; leave out --model.weights {weights}")
    if pooling not in (None, record["backbone"]["pooling"]):
        raise UserError(f"{path} was trained with pooling {record['backbone']['pooling']}, not {pooling}")
    if not record["complete"]:
        raise UserError(f"{path} is of a fit that has not ended; resume it with transferkit fit --ckpt_path {path}")
    backbone = backbones.rebuild(record["backbone"])
    own = {key.removeprefix("backbone."): tensor for key, tensor in state.items() if key.startswith("backbone.")}
    try:
        backbone.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its own architecture here: {first_line(error)}") from error
    return {
        "backbone": backbone,
        "preprocessing": Preprocessing.from_dict(record["backbone"]["preprocessing"]),
        "head": linear(state["head.weight"], state["head.bias"]),
        "class_names": record["class_names"],
        "l2_normalize": record["l2_normalize"],
        "record": record,
    }


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A linear layer that holds the given tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
