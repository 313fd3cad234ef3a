"""Gradient checkpointing: blocks keep their inputs alone, and compute the rest again (arXiv:1604.06174).

It is the same for every library, and counts a batch once in BatchNorm's statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transferkit.backbones.base import Backbone


def checkpoint_blocks(backbone: Backbone, asked: bool = True) -> None:
    """Let the blocks of all stages but the first be computed twice in training, in place; weights and names stay."""
    for stage in backbone.stage_names[1:] if asked else ():
        for block in blocks_of(backbone.stage_modules(stage)):
            block.__class__ = checkpointed(type(block))


def blocks_of(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules that are worth it, those with parts; of a list, which is not called, its items."""
    for module in modules:
        if isinstance(module, nn.ModuleList):
            yield from blocks_of(list(module))
        elif any(True for _ in module.children()):
            yield module


def checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of modules like another, whose forward pass does not keep what it computes."""

    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        run = partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return run(*inputs, **options)
        again = partial(both_contexts, self)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=again, **options)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__})


def both_contexts(module: nn.Module) -> tuple[Any, Any]:
    """Return the contexts of the first computation and of the second."""
    return nullcontext(), still_statistics(module)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's statistics, which have counted this batch: with a momentum of 0 they move by nothing."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [
        (part, part.momentum, None if part.num_batches_tracked is None else part.num_batches_tracked.clone())
        for part in norms
    ]
    for part in norms:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum, count in before:
            part.momentum = momentum
            if count is not None and part.num_batches_tracked is not None:
                part.num_batches_tracked.copy_(count)
