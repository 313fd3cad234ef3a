"""Which names are timm's: its own, those of its repositories on the hub, and directories in its layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.backbones.hub import is_hub_id, split_revision
from transferkit.backbones.known_models import known_models
from transferkit.runtime.json_files import read_json

HUB = ("hf-hub:", "hf_hub:")
OWN = "timm:"  # before a name that torchvision has as well


def is_timm(name: str) -> bool:
    """Return whether a name, hub id or directory is one of timm's, by its prefix or its ``config.json``."""
    if name.startswith((*HUB, OWN, "timm/")):
        return True
    if (config := Path(name, "config.json")).is_file():
        return is_config(read_config(config))
    if is_hub_id(name):
        from huggingface_hub import try_to_load_from_cache

        repo, revision = split_revision(name)
        cached = try_to_load_from_cache(repo, "config.json", revision=revision)
        return isinstance(cached, str) and is_config(read_config(Path(cached)))
    return "/" not in name and name.partition(".")[0] in known()


def known() -> set[str]:
    """Return timm's names without tags; the known ones where it is not installed."""
    try:
        import timm
    except ImportError:
        return {model.name.partition(".")[0] for model in known_models() if model.library == "timm"}
    return set(timm.list_models())


def is_config(config: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is of timm's own layout, as TimmWrapper repositories have it, too."""
    return (
        isinstance(config.get("architecture"), str)
        and config.get("library") != "torchvision"
        and ("pretrained_cfg" in config or "num_classes" in config)
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``; empty where it is not a JSON object."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
