"""Looking for a backbone by a part of its name, offline and without building what is known."""

import fnmatch
from importlib import metadata

from transferkit.backbones.known_models import KnownModel, known_models, release_of_timm
from transferkit.errors import UserError

MOST_BUILT = 12  # models of another release of timm that are built, without memory for their weights, to describe them


def find_models(pattern: str | None = None) -> list[KnownModel]:
    """Return the known backbones whose name matches.

    Args:
        pattern: a part of the name, or a pattern with ``*``; case does not matter. None is every model but timm's.
    """
    found = [model for model in known_models() if matches(model.name, pattern)]
    timm = [model for model in found if model.library == "timm"]
    others = [model for model in found if model.library != "timm"]
    return others if pattern is None else others + installed(timm, pattern)


def matches(name: str, pattern: str | None) -> bool:
    """Return whether a name fits a pattern; without ``*`` or ``?`` the pattern is a part of it."""
    if pattern is None:
        return True
    whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return fnmatch.fnmatchcase(name.lower(), whole.lower())


def installed(known: list[KnownModel], pattern: str) -> list[KnownModel]:
    """Return timm's models that match, of the release that is installed; none where it is not.

    Args:
        known: those that match, of the release that is known.
        pattern: of the names.
    """
    try:
        release = metadata.version("timm")
    except metadata.PackageNotFoundError:
        return []
    if release == release_of_timm():
        return known
    import timm

    rows = {model.name: model for model in known}
    names = [name for name in timm.list_pretrained() if matches(name, pattern)]
    new = [name for name in names if name not in rows]
    few = len(new) <= MOST_BUILT
    added = [describe(name) if few else KnownModel(name, "timm", None, None, None, ()) for name in new]
    rows |= {model.name: model for model in added if model}
    return [rows[name] for name in names if name in rows]


def describe(name: str) -> KnownModel | None:
    """Return what is asked of one of timm's models, from building it; None where it does not open."""
    import torch

    try:
        with torch.device("meta"):  # without memory for its weights
            return built(name)
    except Exception:  # some read the values of tensors while they are built
        pass
    try:
        return built(name)
    except UserError:
        return None


def built(name: str) -> KnownModel:
    """Build one of timm's models, to see what it is.

    Raises:
        UserError: it does not open.
    """
    from transferkit.backbones import from_timm
    from transferkit.images.preprocessing import Preprocessing

    arguments, cfg = from_timm.describe(name, "none")
    model = from_timm.make_model(name, arguments, False, cfg)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scheme = Preprocessing.from_timm(cfg)
    backbone = from_timm.TimmBackbone(name, model, scheme)
    side = max(scheme.image_size)
    return KnownModel(name, "timm", parameters, backbone.embed_dim, side, backbone.poolings)
