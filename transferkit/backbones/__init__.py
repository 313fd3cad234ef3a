"""Backbones by name: torchvision's models, Hugging Face ids, timm's names, local directories."""

import copy
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.backbones.base import Backbone

__all__ = ["Backbone", "build", "rebuild", "with_revision"]

WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

if not TYPE_CHECKING:  # the libraries are imported when something is built: to list names takes none of them

    def __getattr__(name: str) -> object:
        """Import :class:`Backbone` when it is first used."""
        if name != "Backbone":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from transferkit.backbones.base import Backbone

        return Backbone


def build(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    architecture: dict[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> "Backbone":
    """Build a backbone by its name.

    Args:
        name: torchvision name, timm name (``resnet50.a1_in1k``), Hugging Face id (``owner/model``,
            ``hf-hub:owner/model`` for timm) or local directory.
        weights: ``DEFAULT``, ``none`` (random), an entry of torchvision's weights by its name (``IMAGENET1K_V1``), or
            a path to ``.safetensors`` or a state dict.
        pooling: see :class:`Backbone`; ``None`` is the backbone's default.
        architecture: arguments that change the architecture, for random weights only.
        preprocessing: fields that differ from the weights' own, or all of them where the weights bring none.
        revision: branch, tag or commit of a hub repository; ``NAME@REVISION`` as the name says the same.

    Raises:
        UserError: unknown name (the nearest are named), or see the libraries' ``build``.
    """
    from transferkit.backbones import from_timm, from_torchvision, from_transformers
    from transferkit.backbones.hub import is_hub_id
    from transferkit.backbones.spelling import ELSEWHERE, is_path, near_names
    from transferkit.backbones.timm_names import is_timm

    known = from_torchvision.names()
    name, architecture = with_revision(name, revision), copy.deepcopy(architecture)  # see `rebuild`
    weights = str(Path(weights).expanduser()) if weights.startswith("~") else weights
    if name in known:  # a folder that happens to have this name is reached as ./NAME
        return from_torchvision.build(name, weights, pooling, architecture, preprocessing)
    if not name:
        raise UserError("the name of the backbone is empty; give one, such as resnet18")
    network, _, entry = name.partition(".")
    if network in known and from_torchvision.has_weights(network, entry):
        raise UserError(f'{name} names a network and its weights; give `backbone="{network}"` and `weights="{entry}"`')
    if Path(name).is_file():
        raise UserError(f"{name} is {what_is(Path(name))}")
    if is_timm(name):
        return from_timm.build(name, weights, pooling, architecture, preprocessing)
    if Path(name).is_dir() or (is_hub_id(name) and name not in ELSEWHERE):
        return from_transformers.build(name, weights, pooling, architecture, preprocessing)
    if "://" in name:
        raise UserError(f"{name} is not an address of a model on the hub; download it, and give its file or folder")
    if is_path(name):
        raise UserError(f"unknown backbone {name!r} (no such directory); check the path")
    near = near_names(name)
    hint = f"nearest: {', '.join(near)}" if near else f"try resnet18 or {from_transformers.VIT}"
    raise UserError(f"unknown backbone {name!r} (no such torchvision or timm model, hub id or directory); {hint}")


def what_is(file: Path) -> str:
    """Return what a file is that is given in place of a backbone, with the remedy."""
    from transferkit.backbones.other_layouts import other_layout

    if file.suffix.lower() in WEIGHTS_SUFFIXES:
        how = f'give the name of its network beside it, such as `backbone="resnet18"` `weights="{file}"`'
        return f"a file of weights alone; {how}"
    if file.suffix == ".json":
        return f"a file of a model; give its folder, {file.parent}"
    other = other_layout([file.name])
    return other or "a file, but not a checkpoint (.ckpt); give the folder that an extractor is in"


def is_library_name(name: str) -> bool:
    """Return whether :func:`build` takes a name for one of torchvision's or timm's, whatever folder has it."""
    from transferkit.backbones import from_torchvision
    from transferkit.backbones.timm_names import is_timm

    return name in from_torchvision.names() or (not Path(name, "config.json").is_file() and is_timm(name))


def with_revision(name: str, revision: str | None) -> str:
    """Return the :func:`~transferkit.backbones.spelling.plain_name`, of a hub repository at a revision: ``a/b@v1``.

    Raises:
        UserError: the name is not a repository's, or says another revision already.
    """
    from transferkit.backbones.spelling import plain_name

    name = plain_name(name)
    if revision is None:
        return name
    if "/" not in name or Path(name).exists() or "@" in name:
        raise UserError(f"{name} has no revisions to choose from; leave out `revision={revision}`, or give a hub id")
    return f"{name}@{revision}"


def rebuild(spec: dict[str, Any]) -> "Backbone":
    """Build the architecture of a :meth:`Backbone.spec`, with random weights."""
    spec = copy.deepcopy(spec)  # building a model may write into its configuration: LeViT's does
    module = {"torchvision": "from_torchvision", "timm": "from_timm"}.get(spec["source"], "from_transformers")
    rebuilt: Backbone = importlib.import_module(f"transferkit.backbones.{module}").rebuild(spec)
    return rebuilt
