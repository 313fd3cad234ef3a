"""Looking for a backbone by a part of its name, offline and without building it."""

import difflib
import fnmatch
import importlib.util
from collections.abc import Sequence

from transferkit.backbones.known_models import KnownModel, known_models, timm_models


def find_models(pattern: str | None = None) -> list[KnownModel]:
    """Return the known backbones whose name matches.

    Args:
        pattern: a part of the name, or a pattern with ``*``; case does not matter. None is every model but timm's.
    """
    timms = timm_models() if pattern is not None and importlib.util.find_spec("timm") else ()
    return [model for model in (*known_models(), *timms) if matches(model.name, pattern)]


def matches(name: str, pattern: str | None) -> bool:
    """Return whether a name fits a pattern; without ``*`` or ``?`` the pattern is a part of it."""
    if pattern is None:
        return True
    whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return fnmatch.fnmatchcase(name.lower(), whole.lower())


def near_names(pattern: str) -> Sequence[str]:
    """Return the known names nearest to what was not found."""
    return difflib.get_close_matches(pattern, [model.name for model in known_models()], n=3, cutoff=0.4)
