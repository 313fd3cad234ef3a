"""Parameter groups: which learning rate and weight decay each trainable parameter gets."""

from typing import Any, Literal

import torch
from torch import nn

from transferkit.backbones import Backbone

NO_DECAY = ("cls_token", "distillation_token", "register_tokens", "position_embeddings", "pos_embedding", "mask_token")


def parameter_groups(
    backbone: Backbone,
    head: nn.Module,
    lr_head: float,
    lr_backbone: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, each parameter in exactly one.

    A backbone parameter of stage i of n learns at ``lr_backbone * layer_decay ** (n - 1 - i)`` (Clark et al.
    2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). Norms, biases, class tokens and position
    embeddings are not decayed.

    Returns:
        Dicts with ``name``, ``params``, ``lr`` and ``weight_decay``; ``head`` groups first.
    """
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    last = len(backbone.stages) - 1
    names = backbone.stage_names
    for prefix, module in (("head", head), ("backbone", backbone.model)):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            decay = 0.0 if parameter.ndim <= 1 or name.endswith(NO_DECAY) else weight_decay
            if prefix == "head":
                key = ("head", lr_head, decay)
            else:
                stage = backbone.stage_of(name)
                key = (f"backbone/{names[stage]}", lr_backbone * layer_decay ** (last - stage), decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"name": name + ("" if decay else "/no_decay"), "params": params, "lr": lr, "weight_decay": decay}
        for (name, lr, decay), params in groups.items()
    ]


def make_optimizer(
    kind: Literal["adamw", "sgd"], groups: list[dict[str, Any]], momentum: float
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) or SGD with Nesterov momentum over the groups; fused where the device has it."""
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(groups, lr=0.0, fused=all(p.is_cuda for group in groups for p in group["params"]))


def cosine_with_warmup(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup`` steps, then a cosine to zero at ``steps`` (arXiv:1608.03983)."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + float(torch.cos(torch.tensor(min(1.0, progress) * torch.pi))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
