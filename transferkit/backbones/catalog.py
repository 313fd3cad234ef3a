"""Looking for a backbone by a part of its name, offline and without building what is large."""

import difflib
import fnmatch
import importlib.util
from collections.abc import Sequence

from transferkit.backbones.known_models import KnownModel, known_models

MOST_BUILT = 12  # timm's models that are built, without memory for their weights, to count their parameters


def find_models(pattern: str | None = None) -> list[KnownModel]:
    """Return the known backbones whose name matches.

    Args:
        pattern: a part of the name, or a pattern with ``*``; case does not matter. None is every model but timm's.
    """
    found = [model for model in known_models() if matches(model.name, pattern)]
    return found if pattern is None else found + timm_models(pattern)


def matches(name: str, pattern: str | None) -> bool:
    """Return whether a name fits a pattern; without ``*`` or ``?`` the pattern is a part of it."""
    if pattern is None:
        return True
    whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return fnmatch.fnmatchcase(name.lower(), whole.lower())


def near_names(pattern: str) -> Sequence[str]:
    """Return the known names nearest to what was not found."""
    return difflib.get_close_matches(pattern, [model.name for model in known_models()], n=3, cutoff=0.4)


def timm_models(pattern: str) -> list[KnownModel]:
    """Return timm's models with weights that match; none where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    names = [name for name in timm.list_pretrained() if matches(name, pattern)]
    return [timm_model(name, built=len(names) <= MOST_BUILT) for name in names]


def timm_model(name: str, built: bool) -> KnownModel:
    """Describe one of timm's models.

    Args:
        name: its name, with a tag.
        built: whether to build it, without memory for its weights, to know its parameters, width and poolings.
    """
    import timm
    import torch

    from transferkit.backbones.timm_output import known_poolings

    cfg = timm.models.get_pretrained_cfg(name)
    side = int(cfg.input_size[-1]) if cfg else None
    if not built:
        return KnownModel(name, "timm", None, None, side, ())
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # some read the values of tensors when they are built
        return KnownModel(name, "timm", None, None, side, ())
    parameters = sum(tensor.numel() for tensor in model.parameters())
    width = getattr(model, "head_hidden_size", None) or getattr(model, "num_features", None)
    return KnownModel(name, "timm", parameters, int(width) if width else None, side, known_poolings(model))
