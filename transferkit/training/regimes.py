"""Regimes: which parts of a backbone learn, and which do not change by a bit."""

from collections.abc import Collection
from typing import Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning
from torch import nn

from transferkit.backbones import Backbone
from transferkit.backbones.adapters import is_adapter
from transferkit.errors import UserError

Regime = Literal["frozen", "partial", "full", "scratch", "lp-ft", "stages", "lora"]


def first_trainable(backbone: Backbone, regime: Regime, unfreeze_last: int) -> int:
    """Return the index of the first stage that learns; the number of stages if none does.

    Raises:
        UserError: ``unfreeze_last`` is out of range.
    """
    count = len(backbone.stages)
    if regime != "partial":
        return count if regime in ("frozen", "lora") else 0
    if not 1 <= unfreeze_last <= count:
        raise UserError(
            f"`unfreeze_last` is {unfreeze_last}, {backbone.name} has {count} stages "
            f"({', '.join(backbone.stages)}); give 1 to {count}"
        )
    return count - int(unfreeze_last)


def freeze(backbone: Backbone, first: int) -> None:
    """Let only adapters and the stages from ``first`` on learn, except parameters that no gradient reaches."""
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or backbone.stage_of(name) >= first)
    for parameter in unreached(backbone):
        parameter.requires_grad_(False)


def unreached(backbone: Backbone) -> list[nn.Parameter]:
    """Return parameters that would learn but do not affect the embedding, such as DINOv2's mask token.

    They would be counted as learning, and DistributedDataParallel would wait for their gradients forever. One backward
    pass on a blank image finds them; a frozen backbone needs none.
    """
    learning = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    if not learning:
        return []
    set_mode(backbone, 0, True, batchnorm_moves=False)  # LeViT keeps its biases apart from its weights in eval mode
    pixels = torch.zeros(1, 3, *backbone.preprocessing.image_size, device=learning[0].device)
    with torch.enable_grad(), torch.random.fork_rng():
        gradients = torch.autograd.grad(backbone(pixels).sum(), learning, allow_unused=True)
    backbone.eval()
    return [parameter for parameter, gradient in zip(learning, gradients, strict=True) if gradient is None]


def set_mode(backbone: Backbone, first: int, training: bool, batchnorm_moves: bool = True) -> None:
    """Put the learning stages in train or eval mode, and frozen ones in eval mode.

    With ``requires_grad=False`` alone, BatchNorm would update its statistics and dropout would stay on.

    Args:
        backbone: the network.
        first: index of the first stage that learns.
        training: train mode or eval mode.
        batchnorm_moves: whether BatchNorm layers that learn normalize by the batch and update their running
            statistics; otherwise they normalize by the running statistics, and only weights and biases learn.
    """
    backbone.eval()
    if not training:
        return
    for stage in backbone.stage_names[first:] if first else ():
        for module in backbone.stage_modules(stage):
            module.train()
    if first == 0:
        backbone.train()
    for module in backbone.modules() if not batchnorm_moves else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def frozen_keys(backbone: Backbone, first: int) -> set[str]:
    """Return the names, within the backbone, of the parameters and buffers that training does not change."""
    names = [name for name in backbone.model.state_dict() if not is_adapter(name)]
    return {f"model.{name}" for name in names if backbone.stage_of(name) < first}


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and how many of them learn."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def check_unfreezing(callbacks: Collection[Callback], frozen: Collection[str] = ()) -> None:
    """Raise for callbacks that unfreeze parameters within a fit, or change those that do not learn.

    Args:
        callbacks: of the Trainer.
        frozen: names of the backbone's tensors that training does not change; embeddings may be cached of them.

    Raises:
        UserError: naming the callback.
    """
    for callback in callbacks:
        if isinstance(callback, BaseFinetuning):
            raise UserError(
                f'the callback {type(callback).__name__} unfreezes within a fit; give `regime="stages"`, or fit '
                'twice, the second time with `backbone="CKPT"` and `regime="partial"` or `regime="full"`'
            )
        if isinstance(callback, ModelPruning) and frozen and not callback._parameters_to_prune:
            raise UserError(
                "the callback ModelPruning prunes layers that do not learn, too; give it parameters_to_prune, or fit "
                'with `regime="full"`'
            )
