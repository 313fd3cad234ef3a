"""Loading a state dict into a module: the one way for weights of a file, an export or a checkpoint."""

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.errors import UserError, first_line, listed

log = logging.getLogger(__name__)

# What torch.compile, DistributedDataParallel and their like put into the names of a module that they wrap.
WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


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
HEADS = {
    *("classifier", "cls_classifier", "distillation_classifier", "pooler", "head", "lm_head", "decoder", "fc"),
    *("mask_token", "projector", "predictor", "queue", "queue_ptr", *TEXT),  # of self-supervised training, too
}
# Of two copies of one network in a file: part of the name of the one that is meant, and of the others.
COPIES = (
    ("encoder_q", ("encoder_k",)),
    ("base_encoder", ("momentum_encoder",)),
    ("teacher", ("student",)),
    ("online", ("target",)),
    ("backbone.", ("backbone_momentum", "momentum_backbone")),
)
# Children of torchvision's ResNets in their order, with those that have no tensors.
CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], origin: str | Path, optional: Collection[str] = ()
) -> None:
    """Copy a state dict into a module, in the module's own dtypes.

    Args:
        module: target of the weights.
        state: name -> tensor, under the module's present names or those of an earlier version.
        origin: where the weights come from, for messages.
        optional: names that may be missing.

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
            raise UserError(f"{path} {kind} {listed(names, quote=False)}; {remedy}")


def check_finite(origin: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that would make every embedding NaN.

    Raises:
        UserError: naming the first tensor that holds NaN or infinity.
    """
    if name := not_finite(state):
        raise UserError(
            f"{origin}: the tensor {name} holds NaN or infinity; give weights whose training did not diverge"
        )


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if there is none."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        # A sum takes one pass and no memory, and is finite where every value is, but for an overflow.
        precision = torch.promote_types(tensor.dtype, torch.float32)
        if not tensor.sum(dtype=precision).isfinite() and not tensor.isfinite().all():
            return name
    return None


def own_names(state: Mapping[str, Tensor], own: Collection[str], origin: str | Path) -> dict[str, Tensor]:
    """Return the state dict under the module's own names, without what wraps a module puts before them.

    The prefix (``model.``, ``backbone.``, ``student.encoder.`` …) under which the most names fit is removed and
    logged; tensors without it keep their names. Of a network and its moving average the one that is meant is taken.

    Args:
        state: name -> tensor, from a file.
        own: names that the module has, or that files give to its tensors.
        origin: the file, for messages.

    Raises:
        UserError: several prefixes fit equally well, or two tensors would get one name.
    """
    if state.keys() == set(own):  # as of most files, which the search for prefixes would slow
        return dict(state)
    wrappers = set(WRAPPED) - {part for key in own for part in key.split(".")}
    plain = {".".join(part for part in key.split(".") if part not in wrappers): state[key] for key in state}
    plain = plain if len(plain) == len(state) else dict(state)
    plain = renumbered(plain, own, origin)
    best = fitting(plain, own)
    prefix = best[0] if best else ""  # a longer one is a part of the network that is called as another
    dropped: list[str] = []
    if not all(start.startswith(prefix) for start in best):
        prefix = meant(best, origin)
        dropped = sorted(key for key in plain if any(key.startswith(start) for start in best if start != prefix))
    found = {key.removeprefix(prefix): tensor for key, tensor in plain.items() if key.startswith(prefix)}
    rest = {key: tensor for key, tensor in plain.items() if not key.startswith(prefix) and key not in set(dropped)}
    check_keys(origin, unexpected=rest.keys() & found.keys())
    lost = (
        {part for key in state for part in key.split(".") if part in wrappers} if plain.keys() != state.keys() else ()
    )
    if lost or prefix:
        parts = [*(f"{part}." for part in sorted(lost)), *([prefix] if prefix else [])]
        log.warning("removed %s from the names in %s", " and ".join(parts), origin)
    if dropped:
        log.warning("left out %s of %s: another copy of the network", listed(dropped, most=3, quote=False), origin)
    return found | rest


def fitting(state: Iterable[str], own: Collection[str]) -> list[str]:
    """Return the prefixes under which the most names are the module's own, the shortest first."""
    starts = Counter(start for key in state for start in prefixes(key) if key[len(start) :] in own)
    return sorted((start for start, count in starts.items() if count == max(starts.values())), key=len)


def meant(best: Sequence[str], origin: str | Path) -> str:
    """Return the prefix of the copy of a network that its method means to be used.

    MoCo: the query encoder; MoCo v3, BYOL and lightly: the one that is trained; DINO: the teacher.

    Raises:
        UserError: none of the known.
    """
    for wanted, others in COPIES:
        chosen = [start for start in best if wanted in start]
        if len(chosen) == 1 and all(start == chosen[0] or any(other in start for other in others) for start in best):
            return chosen[0]
    raise UserError(f"{origin} holds weights under {', '.join(sorted(best))}; save those of one of them alone")


def renumbered(state: dict[str, Tensor], own: Collection[str], origin: str | Path) -> dict[str, Tensor]:
    """Return the state dict of an ``nn.Sequential`` of a module's children under the children's names.

    fastai and lightly put the children of a ResNet into one: ``0.weight`` is ``conv1.weight``. What follows the
    network there (fastai's ``1.``) is its head.

    Args:
        state: name -> tensor.
        own: names of the module; without an order (a set) nothing is renamed.
        origin: the file, for messages.
    """
    children = list(dict.fromkeys(key.split(".")[0] for key in own)) if isinstance(own, Mapping) else []
    if not children or not any(part.isdigit() for key in state for part in key.split(".")[:3]) or children[0].isdigit():
        return state
    orders = CHILDREN if set(children) <= set(CHILDREN) else tuple(children)
    numbers = {f"{orders.index(key.split('.')[0])}.{key.partition('.')[2]}": key for key in own}
    best = fitting(state, numbers)
    count = sum(key.removeprefix(best[0]) in numbers for key in state if key.startswith(best[0])) if best else 0
    plain = fitting(state, own)
    fits = sum(key.startswith(plain[0]) and key.removeprefix(plain[0]) in own for key in state) if plain else 0
    if count <= max(fits, len(numbers) // 2):
        return state
    log.warning("took the numbers in the names in %s as the network's parts in their order", origin)
    named = {key: numbers.get(key.removeprefix(best[0])) for key in state if key.startswith(best[0])}
    kept = {name: state[key] for key, name in named.items() if name}
    rest = {key: state[key] for key in state if key not in named or not named[key]}
    head = sorted(key for key in rest if re.match(r"1\.\d", key)) if best[0] == "0." else []
    if head:
        log.warning("dropped %s of %s: not part of the backbone", listed(head, quote=False), origin)
    return kept | {key: tensor for key, tensor in rest.items() if key not in head}


def without_heads(state: Mapping[str, Tensor], own: Collection[str], origin: str | Path) -> dict[str, Tensor]:
    """Return the state dict without the heads that the module does not have; what is dropped is logged."""
    dropped = sorted(key for key in state if key not in own and is_head(key))
    if dropped:
        log.warning("dropped %s of %s: not part of the backbone", ", ".join(dropped), origin)
    return {key: tensor for key, tensor in state.items() if key not in dropped}


def is_head(key: str) -> bool:
    """Return whether a tensor belongs to what a backbone leaves out: heads, poolers, text towers, mask tokens."""
    return any(part in HEADS or part.endswith("_head") for part in key.split("."))


def prefixes(key: str) -> Iterable[str]:
    """Return every start of a dotted name, the empty one first: ``a.b.c`` has ``""``, ``a.`` and ``a.b.``."""
    parts = key.split(".")
    return ("".join(f"{part}." for part in parts[:count]) for count in range(len(parts)))
