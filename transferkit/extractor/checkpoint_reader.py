"""Reading a training checkpoint without the LightningModule that wrote it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit import backbones
from transferkit.backbones.loading import check_finite, load_state
from transferkit.backbones.weights import apply_masks, read_tensors
from transferkit.errors import UserError, first_line
from transferkit.extractor import adapted
from transferkit.extractor.calibration import Calibration
from transferkit.extractor.core import ExtractorCore

log = logging.getLogger(__name__)

KEY = "transferkit"
FORMAT = 1
DISTILLED = "distill"  # the regime of a student, which has a projection in place of a head
OTHER_TARGETS = 2  # the format of several labels and of numbers, which earlier versions would take for classes
LOSS_SCALE = "loss_scale"  # in the record of an extractor: mean and deviation of the target that its loss is in
# Fields that describe the training and their types; dictionaries map names to numbers, lists hold numbers.
TRAINING: Mapping[str, type] = {
    "regime": str, "weights": str, "checkpoint": str, "epoch": int, "fitted_on": str,
    "class_counts": dict, "images": dict, "metrics": dict, "target": str, "thresholds": dict, "scale": dict,
    LOSS_SCALE: dict, "loss": str, "class_weights": list, "backbone_fitted_on": str, "teacher": str,
}  # fmt: skip
# Parts of a checkpoint that Lightning reads, too, and their types.
PARTS: Mapping[str, type] = {
    "state_dict": Mapping, "callbacks": Mapping, "loops": Mapping, "hyper_parameters": Mapping,
    "optimizer_states": list, "lr_schedulers": list,
}  # fmt: skip
TARGETS = ("class", "labels", "number")
# Exceptions for a record of other types or tensors of other shapes.
BROKEN = (KeyError, TypeError, AttributeError, ValueError, RuntimeError)


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint's plain types and tensors, on the CPU; code in it is never run.

    Raises:
        UserError: the file does not exist, is not a transferkit checkpoint, or has a newer format.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; fit writes runs/NAME/NUMBER/checkpoints/best.ckpt")
    content = read_tensors(path)
    record = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(record, dict) or "state_dict" not in content:
        weights = isinstance(content, dict) and isinstance(content.get("state_dict"), Mapping)
        other = f', or the name of its network and `weights="{path}"`' if weights else ""
        raise UserError(f"{path} is not a transferkit checkpoint; give one that fit wrote{other}")
    check_format(path, record)
    for name, kind in PARTS.items():
        if name in content and not isinstance(content[name], kind):
            raise UserError(f"{path} is broken or of another version ({name}); fit again")
    if not are_names(record.get("class_names", [])):
        raise UserError(f"{path} is broken or of another version (class_names); fit again")
    return dict(content)


def are_names(names: Any) -> bool:
    """Return whether class names are a list of different texts."""
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def check_format(path: Path, record: Mapping[str, Any]) -> None:
    """Raise for a record of a format that this version does not read.

    Raises:
        UserError: with the format of classes that it reads.
    """
    if record.get("format") not in (FORMAT, OTHER_TARGETS):
        raise UserError(f"{path} has format {record.get('format')}, this version reads {FORMAT}; update transferkit")


def format_of(record: Mapping[str, Any]) -> int:
    """Return the format of a record of training, by what is predicted."""
    return FORMAT if record.get("target", "class") == "class" else OTHER_TARGETS


def read(
    path: Path,
    weights: str,
    pooling: str | None,
    preprocessing: Mapping[str, Any],
    open_base: Callable[..., ExtractorCore],
) -> dict[str, Any]:
    """Return the arguments of an Extractor from a checkpoint.

    Args:
        path: the checkpoint.
        weights: ``DEFAULT``; a checkpoint has its own.
        pooling: None, or that of the checkpoint.
        preprocessing: fields to override.
        open_base: opens the extractor that adapters belong to, :meth:`Extractor.from_pretrained`.

    Raises:
        UserError: the file is not a usable checkpoint, or its record contradicts the arguments.
    """
    content = load(path)
    record = content[KEY]
    if weights != "DEFAULT":
        raise UserError(f'{path} has its own weights; leave out `weights="{weights}"`')
    try:
        if pooling not in (None, record["backbone"]["pooling"]):
            raise UserError(
                f"{path} was trained with pooling {record['backbone']['pooling']}, not {pooling}; "
                f'leave out `pooling="{pooling}"`'
            )
        if not record["complete"]:
            raise UserError(
                f"{path} was written by an earlier version during a fit, without the frozen weights; fit again"
            )
        check_training(record)
        apply_masks(content["state_dict"])
        adapters = record.get(adapted.KEY)
        if adapters:
            backbone = adapted.merged_backbone(adapters, content["state_dict"], path, open_base)
        else:
            backbone = backbones.rebuild(record["backbone"])
        state = {key.removeprefix("backbone."): tensor for key, tensor in content["state_dict"].items()}
        head = None
        if record.get("regime") == DISTILLED:
            state = {key: tensor for key, tensor in state.items() if not key.startswith("projections.")}
        else:
            weight, bias = in_unit(state.pop("head.weight"), state.pop("head.bias"), record.get("scale"))
            head = linear(weight, bias, backbone.embed_dim, record["class_names"])
            check_finite(path, {"head.weight": head.weight, "head.bias": head.bias})
        if not adapters:
            load_state(backbone, state, path)
        change_preprocessing(backbone, preprocessing)
        return {
            "backbone": backbone,
            "head": head,
            "class_names": record["class_names"],
            "l2_normalize": record["l2_normalize"],
            "record": in_units_record(record) | {"checkpoint": path.name, "epoch": epoch_of(content)},
            "calibration": calibration_beside(path),
        }
    except BROKEN as error:
        raise UserError(f"{path} is broken or of another version ({first_line(error)}); fit again") from error


def in_unit(
    weight: torch.Tensor, bias: torch.Tensor, scale: Mapping[str, float] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a head's tensors for outputs in the unit of the target, which training standardizes."""
    if not scale:
        return weight, bias
    deviation, mean = float(scale["deviation"]), float(scale["mean"])
    return (weight.double() * deviation).to(weight.dtype), (bias.double() * deviation + mean).to(bias.dtype)


def in_units_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record for a head whose outputs are in the unit of the target; the loss stays in that of the fit."""
    kept = {key: value for key, value in record.items() if key not in ("scale", LOSS_SCALE)}
    return kept | ({LOSS_SCALE: record["scale"]} if record.get("scale") else {})


def calibration_beside(path: Path) -> Calibration | None:
    """Return the calibration in the run of a checkpoint, if there is one that can be read."""
    if path.absolute().parent.name != "checkpoints":
        return None
    try:
        return Calibration.load(path.absolute().parents[1])
    except UserError as error:  # a checkpoint can be used without it
        log.warning("%s", error)
        return None


def change_preprocessing(backbone: backbones.Backbone, fields: Mapping[str, Any]) -> None:
    """Override fields of the preprocessing of a backbone that is being opened.

    Raises:
        UserError: unknown fields, or a size that the backbone does not take.
    """
    if fields:
        backbone.preprocessing = backbone.preprocessing.override(fields)
        backbone.fit_to(backbone.preprocessing.image_size)
        backbone.dry_run(backbone)


def epoch_of(content: Mapping[str, Any]) -> int:
    """Return the epoch, from 1, of a checkpoint's weights; 0 before the first step."""
    if "loops" not in content:
        return int(content["epoch"]) + 1
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])


def linear(weight: torch.Tensor, bias: torch.Tensor, embed_dim: int, class_names: list[str]) -> nn.Linear:
    """Make a linear layer from its tensors.

    Raises:
        ValueError: the names of the classes are not different texts, or the shapes do not match them or the embedding.
    """
    if not are_names(class_names):
        raise ValueError(f"class_names is {str(class_names)[:40]!r}")
    classes = len(class_names) or len(bias)
    if weight.shape != (classes, embed_dim) or bias.shape != (classes,):
        raise ValueError(f"head weight is {tuple(weight.shape)}, expected (number of classes, {embed_dim})")
    layer = nn.Linear(embed_dim, classes)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def check_training(record: Mapping[str, Any]) -> None:
    """Validate the types of the fields that describe the training.

    Raises:
        ValueError: a field has another type; the first one is named.
    """
    for name, kind in TRAINING.items():
        value = kind() if record.get(name) is None else record[name]
        numbers = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not isinstance(value, kind) or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    if record.get("target", "class") not in TARGETS:
        raise ValueError(f"target is {record['target'][:40]!r}")
    weights = record.get("class_weights") or []
    if not isinstance(weights, list) or not all(isinstance(weight, int | float) for weight in weights):
        raise ValueError(f"class_weights is {str(weights)[:40]!r}")
