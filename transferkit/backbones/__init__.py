"""Backbones by name: torchvision's models, Hugging Face ids, timm's names, local directories."""

import copy
import difflib
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

    known = from_torchvision.names()
    name, architecture = with_revision(name, revision), copy.deepcopy(architecture)  # see `rebuild`
    if name in known:  # a folder that happens to have this name is reached as ./NAME
        return from_torchvision.build(name, weights, pooling, architecture, preprocessing)
    if Path(name).is_file() and Path(name).suffix.lower() in WEIGHTS_SUFFIXES:
        how = f'give the name of its network beside it, such as `backbone="resnet18"` `weights="{name}"`'
        raise UserError(f"{name} is a file of weights alone; {how}")
    if Path(name).is_file():
        raise UserError(f"{name} is a file, but not a checkpoint (.ckpt); give the folder that an extractor is in")
    if from_timm.is_timm(name):
        return from_timm.build(name, weights, pooling, architecture, preprocessing)
    if Path(name).is_dir() or is_hub_id(name):
        return from_transformers.build(name, weights, pooling, architecture, preprocessing)
    others = dict.fromkeys([*known, from_transformers.VIT, *from_timm.known()])  # timm has names of torchvision, too
    near = difflib.get_close_matches(name, others, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else f"try resnet18 or {from_transformers.VIT}"
    raise UserError(f"unknown backbone {name!r} (no such torchvision or timm model, hub id or directory); {hint}")


def is_library_name(name: str) -> bool:
    """Return whether :func:`build` takes a name for one of torchvision's or timm's, whatever folder has it."""
    from transferkit.backbones import from_timm, from_torchvision

    return name in from_torchvision.names() or (not Path(name, "config.json").is_file() and from_timm.is_timm(name))


def with_revision(name: str, revision: str | None) -> str:
    """Return the name of a hub repository at a revision: ``owner/model@v1``.

    Raises:
        UserError: the name is not a repository's, or says another revision already.
    """
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
