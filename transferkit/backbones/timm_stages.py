"""Stages of a timm model, by the groups that timm itself makes of its parameters for layer-wise learning rates."""

import re
from typing import Any

from torch import nn

WITH_THE_LAST = (99999,)  # timm's mark of what joins the group before it


def find_stages(model: nn.Module) -> dict[str, list[str]]:
    """Return the stages of a timm model: stem, then its stages or blocks.

    What follows the blocks (a last norm, a last convolution) joins the last stage. Where a model has no groups, the
    modules that its ``feature_info`` names begin stages.
    """
    groups = matched(model) or featured(model)
    names = [cover(model, parameters) for parameters in groups]
    stages = {"stem": names[0] if names else []}
    for parts in names[1:]:
        title = parts[0] if len(parts) == 1 else common(parts)
        stages[title if title and title not in stages else f"stage {len(stages)}"] = parts
    return stages


def matched(model: nn.Module) -> list[list[str]]:
    """Return the parameters' names by timm's ``group_matcher``, the stem's first; empty where it has none."""
    library: Any = model
    if not hasattr(model, "group_matcher"):
        return []
    from timm.models import group_parameters

    try:
        matcher = library.group_matcher(coarse=True)
    except AssertionError:  # RDNet groups single layers alone
        return []
    groups = [names for _, names in sorted(group_parameters(model, matcher).items())]
    if len(groups) > 2 and not any(is_block(name, matcher) for name in groups[-1]):
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def is_block(name: str, matcher: Any) -> bool:
    """Return whether a parameter belongs to a block by a ``group_matcher``, rather than to what follows them."""
    blocks = matcher.get("blocks") if isinstance(matcher, dict) else None
    patterns = [(blocks, None)] if isinstance(blocks, str) else (blocks or [])
    return any(re.match(pattern, name) for pattern, suffix in patterns if suffix != WITH_THE_LAST)


def featured(model: nn.Module) -> list[list[str]]:
    """Return the parameters' names in the order of registration, cut after each module of ``feature_info``."""
    ends = [info["module"] for info in getattr(model, "feature_info", []) if info.get("module")]
    groups: list[list[str]] = [[]]
    for name, _ in model.named_parameters():
        begun = next((end for end in ends if name.startswith(f"{end}.")), None)
        if begun and not any(part.startswith(f"{begun}.") for part in groups[-1]) and groups[-1]:
            groups.append([])
        groups[-1].append(name)
    return groups


def cover(model: nn.Module, parameters: list[str]) -> list[str]:
    """Return the fewest modules that hold exactly these parameters, in order; a parameter on its own by its name."""
    wanted = set(parameters)
    found: list[str] = []

    def descend(module: nn.Module, path: str) -> None:
        inside = {f"{path}{name}" for name, _ in module.named_parameters()}
        if path and inside and inside <= wanted:
            found.append(path.removesuffix("."))
            return
        found.extend(f"{path}{name}" for name, _ in module.named_parameters(recurse=False) if f"{path}{name}" in wanted)
        for name, child in module.named_children():
            if any(key.startswith(f"{path}{name}.") for key in wanted):
                descend(child, f"{path}{name}.")

    descend(model, "")
    return found


def common(names: list[str]) -> str:
    """Return the dotted start that all names share, or the first block's name before what joined it."""
    first = names[0].split(".")
    return ".".join(first[:2]) if len(first) > 1 and first[1].isdigit() else first[0]
