"""Regime ``lora``: adapters on the linear layers of a frozen backbone learn; a checkpoint holds them alone."""

from collections.abc import Mapping
from typing import Any

from transferkit.backbones import Backbone
from transferkit.backbones.adapters import Adapters, add_adapters, is_adapter
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.adapted import KEY as ADAPTERS
from transferkit.extractor.adapted import PREFIX, adapter_record, merged_backbone
from transferkit.extractor.checkpoint_reader import KEY
from transferkit.runtime.plain_types import plain

RANK = 4  # of DINOv2-S, 1.5 % of the parameters learn


def read_options(lora: Mapping[str, Any] | None) -> Adapters:
    """Return the shape of the adapters from the option ``lora``; ``alpha`` is twice the rank by default.

    Raises:
        UserError: a field is unknown, or out of range.
    """
    given = dict(plain(lora or {}))
    if unknown := sorted(given.keys() - set(Adapters._fields)):
        raise UserError(f"`lora` has no field {unknown[0]!r}; it has {', '.join(Adapters._fields)}")
    rank = given.get("rank", RANK)
    alpha = given.get("alpha", 2 * rank if isinstance(rank, int) else 0)
    for name, value, kinds in (("rank", rank, int), ("alpha", alpha, int | float)):
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise UserError(f"`lora` has {name} {value!r}; give a number above 0")
    for name in ("dora", "rslora"):
        if not isinstance(given.get(name, False), bool):
            raise UserError(f"`lora` has {name} {given[name]!r}; give true or false")
    return Adapters(rank, alpha, given.get("dora", False), given.get("rslora", False))


def adapt(extractor: Extractor, regime: str, lora: Mapping[str, Any] | None, seed: int, **base: Any) -> dict[str, Any]:
    """With regime ``lora``, put adapters on the backbone of the extractor that a fit starts from.

    Args:
        extractor: its backbone is changed in place.
        regime: of the fit.
        lora: the shape of the adapters.
        seed: of their weights.
        base: arguments of :meth:`Extractor.from_pretrained` that opened the extractor.

    Returns:
        What a checkpoint records of them; empty with another regime.

    Raises:
        UserError: the weights are random, or the backbone has nothing to adapt.
    """
    if regime != "lora":
        return {}
    adapters = read_options(lora)
    if base["weights"] == "none":
        raise UserError('`regime="lora"` adapts trained weights, not `weights="none"`; give `regime="scratch"`')
    record = adapter_record(base, extractor.backbone, adapters)
    add_adapters(extractor.backbone, adapters, seed)
    return record


def leave_out_base(checkpoint: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Keep of the backbone what learned, and record what it belongs to; changes the checkpoint in place."""
    if not record:
        return
    checkpoint[KEY][ADAPTERS] = dict(record)
    for state in states_of(checkpoint):
        for name in [name for name in state if name.startswith(PREFIX) and not is_adapter(name)]:
            del state[name]


def states_of(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the weights of a checkpoint and, where they are an average, those that training goes on with."""
    return [checkpoint[key] for key in ("state_dict", "current_model_state") if key in checkpoint]


def complete(checkpoint: dict[str, Any], backbone: Backbone, own: Mapping[str, Any]) -> None:
    """Give the checkpoint of adapters the weights that its network has; changes it in place.

    Args:
        checkpoint: of any regime; one without adapters is left as it is.
        backbone: of the module that is to load it; with adapters, if ``own`` has a record of them.
        own: what :func:`adapt` returned for it.

    Raises:
        UserError: the adapters belong to other weights, or to weights that cannot be opened.
    """
    record, state = checkpoint[KEY].get(ADAPTERS), checkpoint["state_dict"]
    if not record:
        return
    if own:
        if any(record[name] != own[name] for name in ("base_sha256", *Adapters._fields)):
            raise UserError(
                "the checkpoint holds adapters of other weights or of another shape; "
                "give the same `backbone`, `weights` and `lora`"
            )
        rest = {name: value for name, value in backbone.state_dict().items() if not is_adapter(name)}
    else:
        rest = dict(merged_backbone(record, state, "the checkpoint", Extractor.from_pretrained).state_dict())
        for name in [name for name in state if is_adapter(name)]:
            del state[name]
    for state in states_of(checkpoint):
        state.update({PREFIX + name: value for name, value in rest.items()})
