"""Checkpoints of adapters: they hold what learned, and name the extractor that it belongs to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.backbones import Backbone, is_library_name
from transferkit.backbones.adapters import Adapters, add_adapters, is_adapter, merge_adapters
from transferkit.backbones.loading import check_finite, check_keys
from transferkit.backbones.weights import state_sha256
from transferkit.errors import UserError
from transferkit.extractor.core import RECORD, ExtractorCore

KEY = "adapters"  # of a checkpoint's record
PREFIX = "backbone."
BASE = ("source", "weights", "pooling", "preprocessing", "revision")  # arguments that open the base


def adapter_record(base: Mapping[str, Any], backbone: Backbone, adapters: Adapters) -> dict[str, Any]:
    """Return what a checkpoint records of adapters and of the extractor that they belong to, in plain types.

    Args:
        base: the arguments of :meth:`Extractor.from_pretrained` that opened it; a path is made absolute.
        backbone: before the adapters are added.
        adapters: their shape.
    """
    on_disk = {"source": is_on_disk(base["source"]), "weights": base["weights"] not in ("DEFAULT", "none")}
    absolute = {name: str(Path(base[name]).absolute()) for name, is_path in on_disk.items() if is_path}
    sha256 = state_sha256(backbone.state_dict())
    return {"base": {**{name: base[name] for name in BASE}, **absolute}, "base_sha256": sha256, **adapters._asdict()}


def is_on_disk(source: str) -> bool:
    """Return whether a source is opened from this machine, rather than by a name that a folder may also have."""
    path = Path(source)
    return (path / RECORD).is_file() or (path.exists() and not is_library_name(source))


def merged_backbone(
    record: Mapping[str, Any], state: Mapping[str, Tensor], path: Path | str, open_base: Callable[..., ExtractorCore]
) -> Backbone:
    """Return the backbone that a checkpoint of adapters means, with the adapters merged into its weights.

    Args:
        record: what :func:`adapter_record` returned.
        state: the checkpoint's state dict.
        path: the checkpoint, for messages.
        open_base: :meth:`Extractor.from_pretrained`.

    Raises:
        UserError: the extractor that they belong to cannot be opened or has other weights, or peft is not installed.
        ValueError: the record does not fit the tensors.
    """
    base = {name: record["base"][name] for name in BASE}
    try:
        backbone = open_base(**base).backbone
    except UserError as error:
        raise UserError(f"{path} holds adapters of {base['source']}, which cannot be opened: {error}") from error
    check_base(backbone, record, path)
    learned = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    ranks = {len(value) for name, value in learned.items() if ".lora_A." in name}
    if ranks != {record["rank"]}:  # before memory is taken for what a file says
        raise ValueError(f"rank {record['rank']}, but tensors of {sorted(ranks)}")
    add_adapters(backbone, Adapters(*(record[name] for name in Adapters._fields)), seed=0)
    check_keys(path, missing={name for name in backbone.state_dict() if is_adapter(name)} - learned.keys())
    check_finite(path, learned)
    check_keys(path, unexpected=backbone.load_state_dict(learned, strict=False).unexpected_keys)
    merge_adapters(backbone)
    return backbone


def check_base(backbone: Backbone, record: Mapping[str, Any], path: Path | str) -> None:
    """Raise unless a backbone, without adapters, is the one that they were trained on.

    Raises:
        UserError: its weights are others.
    """
    if state_sha256(backbone.state_dict()) != record["base_sha256"]:
        raise UserError(
            f"{path} holds adapters of {record['base']['source']}, whose weights have changed since; "
            "give the weights of then, or fit again"
        )
