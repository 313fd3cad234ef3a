"""Putting a state dict into a module: the one way that weights of a file, an export or a checkpoint take."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.errors import UserError, first_line

log = logging.getLogger(__name__)

# What torch.compile, DistributedDataParallel and their like put into the names of a module that they wrap.
WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], origin: str | Path, optional: Collection[str] = ()
) -> None:
    """Copy a state dict into a module, in the module's own dtypes.

    Args:
        module: what it is for.
        state: name -> tensor, named as the module names them now or named them in an earlier version.
        origin: where it comes from, for messages.
        optional: names that need not be there.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape, or holds NaN or infinity.
    """
    own = module.state_dict()
    check_keys(origin, misshapen=[key for key in state if key in own and state[key].shape != own[key].shape])
    check_finite(origin, state)
    first: Any = None
    versions: Mapping[str, Any]
    # Safetensors and plain dicts lose the versions of the modules, which MNASNet needs to load at all. So today's
    # are taken; only where names are left over can the file be older, and the modules translate (ViT's MLP).
    today: Any = own  # torch's OrderedDict has an attribute more
    for versions in (today._metadata, {}):
        given: Any = OrderedDict(state)
        given._metadata = versions
        try:
            outcome = module.load_state_dict(given, strict=False)
        except (RuntimeError, ValueError) as error:
            if first is None:
                raise UserError(f"{origin} cannot be loaded: {first_line(error)}") from error
            break  # there was no earlier version
        missing = [k for k in outcome.missing_keys if not (k in optional or k.endswith("num_batches_tracked"))]
        first = first or (missing, outcome.unexpected_keys)
        if not missing and not outcome.unexpected_keys:
            return
    check_keys(origin, *first)


def check_keys(
    path: str | Path,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    misshapen: Iterable[str] = (),
) -> None:
    """Refuse weights that do not fit the architecture.

    Raises:
        UserError: naming the tensors that are missing, unexpected or of another shape.
    """
    another = "is it for another architecture?"
    for kind, tensors, remedy in (
        ("lacks tensors", missing, another),
        ("has unexpected tensors", unexpected, f"take them out, or {another}"),
        ("has tensors of another shape:", misshapen, another),
    ):
        if names := sorted(tensors):
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{path} {kind} {shown}; {remedy}")


def check_finite(origin: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that would make every embedding NaN.

    Raises:
        UserError: naming the first tensor that holds NaN or infinity.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        # A sum takes one pass and no memory, and is finite where every value is, but for an overflow.
        if not tensor.sum(dtype=torch.float64).isfinite() and not tensor.isfinite().all():
            raise UserError(
                f"{origin}: the tensor {name} holds NaN or infinity; give weights of a training that went well"
            )


def own_names(state: Mapping[str, Tensor], own: Collection[str], origin: str | Path) -> dict[str, Tensor]:
    """The state dict under the module's own names: what wraps a module puts a prefix before them.

    The prefix (``model.``, ``backbone.``, ``student.encoder.`` …) under which the most names fit is taken off, and
    said so; tensors without it keep their names.

    Args:
        state: name -> tensor, from a file.
        own: names that the module has, or that files give to its tensors.
        origin: the file, for messages.

    Raises:
        UserError: several prefixes fit equally well, or two tensors would get one name.
    """
    wrappers = set(WRAPPED) - {part for key in own for part in key.split(".")}
    plain = {".".join(part for part in key.split(".") if part not in wrappers): state[key] for key in state}
    plain = plain if len(plain) == len(state) else dict(state)
    starts = Counter(start for key in plain for start in prefixes(key) if key[len(start) :] in own)
    best = sorted((start for start, count in starts.items() if count == max(starts.values())), key=len)
    prefix = best[0] if best else ""  # a longer one is a part of the network that is called as another
    if not all(start.startswith(prefix) for start in best):
        raise UserError(f"{origin} holds weights under {', '.join(sorted(best))}; save those of one of them alone")
    found = {key.removeprefix(prefix): tensor for key, tensor in plain.items() if key.startswith(prefix)}
    rest = {key: tensor for key, tensor in plain.items() if not key.startswith(prefix)}
    check_keys(origin, unexpected=rest.keys() & found.keys())
    lost = {part for old, new in zip(state, plain, strict=True) for part in set(old.split(".")) - set(new.split("."))}
    if lost or prefix:
        parts = [*(f"{part}." for part in sorted(lost)), *([prefix] if prefix else [])]
        log.warning("took %s off the names in %s", " and ".join(parts), origin)
    return found | rest


def without_heads(state: Mapping[str, Tensor], own: Collection[str], origin: str | Path) -> dict[str, Tensor]:
    """The state dict without the heads that the module does not have; what is dropped is said."""
    dropped = sorted(key for key in state if key not in own and is_head(key))
    if dropped:
        log.warning("dropped %s of %s: not part of the backbone", ", ".join(dropped), origin)
    return {key: tensor for key, tensor in state.items() if key not in dropped}


# What a model of images and texts has besides its vision tower.
TEXT = (
    "text_model",
    "text_encoder",
    "text_projection",
    "visual_projection",
    "logit_scale",
    "logit_bias",
    "temperature",
)


def is_head(key: str) -> bool:
    """Return whether a tensor belongs to what a backbone leaves out: heads, poolers, text towers, mask tokens."""
    heads = ("classifier", "cls_classifier", "distillation_classifier", "pooler", "head", "lm_head", "decoder", *TEXT)
    return any(part in (*heads, "fc", "mask_token") for part in key.split("."))


def prefixes(key: str) -> Iterable[str]:
    """Every start of a dotted name, the empty one first: ``a.b.c`` has ``""``, ``a.`` and ``a.b.``."""
    parts = key.split(".")
    return ("".join(f"{part}." for part in parts[:count]) for count in range(len(parts)))
