"""Adapters of low rank on the linear layers of a backbone, made and merged by peft.

LoRA (Hu et al. 2021, arXiv:2106.09685), DoRA (Liu et al. 2024, arXiv:2402.09353) and rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732).
"""

import re
from typing import Any, NamedTuple

import torch
from torch import nn

from transferkit.backbones.base import Backbone
from transferkit.errors import UserError
from transferkit.runtime.optional import optional


class Adapters(NamedTuple):
    """What decides the shape of the adapters, and what they compute.

    Attributes:
        rank: of the matrix that is added to a weight.
        alpha: the matrix is scaled by ``alpha / rank``, with rsLoRA by ``alpha / sqrt(rank)``.
        dora: learn the length of each row of a weight apart from its direction.
        rslora: scale by the square root of the rank.
    """

    rank: int
    alpha: float
    dora: bool = False
    rslora: bool = False


def library() -> Any:
    """Import peft.

    Raises:
        UserError: it is not installed.
    """
    return optional("peft", "'transferkit[peft]'", "LoRA")


def is_adapter(name: str) -> bool:
    """Return whether a parameter, by its name, is of an adapter."""
    return ".lora_" in name


def linear_layers(backbone: Backbone) -> list[str]:
    """Return the names, within ``model``, of the linear layers in all stages but the first.

    Not those of torchvision's attention, which a function computes from the bare weights.
    """
    inside = nn.modules.linear.NonDynamicallyQuantizableLinear
    return [
        name
        for name, module in backbone.model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")  # transformers' linear layer
        and not isinstance(module, inside)
        and backbone.stage_of(name) > 0
    ]


def add_adapters(backbone: Backbone, adapters: Adapters, seed: int) -> None:
    """Put an adapter on every linear layer of the blocks; at first they change nothing.

    Args:
        backbone: changed in place.
        adapters: their shape.
        seed: of their weights.

    Raises:
        UserError: peft is not installed, or the blocks have no linear layers.
    """
    names = linear_layers(backbone)
    if not names:
        raise UserError(
            f'{backbone.name} has no linear layers in its blocks, which `regime="lora"` adapts; '
            "give `regime` partial, full or lp-ft"
        )
    peft = library()
    config = peft.LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        use_dora=adapters.dora,
        use_rslora=adapters.rslora,
        target_modules="|".join(map(re.escape, names)),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in backbone.model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, backbone.model)
    backbone.eval()


def merge_adapters(backbone: Backbone) -> None:
    """Add the adapters to the weights, in float32, which leaves the library's own layers; in place."""
    layer = library().tuners.tuners_utils.BaseTunerLayer
    backbone.float()
    for name, module in list(backbone.model.named_modules()):
        if isinstance(module, layer):
            module.merge(safe_merge=True)
            backbone.model.set_submodule(name, module.get_base_layer())
    vars(backbone.model).pop("peft_config", None)
    backbone.eval()
