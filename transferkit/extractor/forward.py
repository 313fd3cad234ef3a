"""The forward pass for inference: the library's own numbers to 1e-5 in float32, as fast as they can be had.

Nothing here touches the network that it is made from: what has to change is changed in a copy.
"""

import copy
import math
import re
import threading
from collections import Counter
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from transferkit.backbones import Backbone
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime.full_float32 import full_float32

Precision = Literal["32", "bf16"]
Features = Literal["pooled", "tokens", "map"]

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


class Stopped(Exception):
    """A forward pass was given up because nobody waits for it any more."""


class Forward:
    """What is kept of preprocessed pixels: uint8 (B, 3, h, w) -> float32 (B, *shape).

    It may be called from several threads at once: each has modules of its own over the same weights. Make it
    anew when the weights have changed.

    Args:
        backbone: the network, its pooling chosen, on the device to use.
        preprocessing: says how pixels are normalised.
        precision: ``32``, or ``bf16``: weights and activations in bfloat16.
        layer: an earlier stage (``layer3``, ``block 5``, ``5``) instead of the end. Pooled, a map gives its
            mean, tokens their class token; where there is none, or no block has filled it yet, their mean.
        features: ``tokens`` (T, C) or ``map`` (C, h, w) as they are before pooling, instead of ``pooled``.
        normalize: whether embeddings get length 1; a zero one stays zero.

    Attributes:
        shape: of what is kept of one image, ``(D,)`` where it is pooled.
        pooling: how features become one embedding; ``none`` where they do not.

    Raises:
        UserError: no such stage, or features that the network does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        precision: Precision = "32",
        layer: str | None = None,
        features: Features = "pooled",
        normalize: bool = False,
    ) -> None:
        if normalize and features != "pooled":
            raise UserError(f"--normalize is for one embedding an image, not for --features {features}; leave one out")
        stage = find_stage(backbone, layer) if layer else backbone.stage_names[-1]
        self.layer = None if stage == backbone.stage_names[-1] else stage
        self.precision, self.features, self.normalize = precision, features, normalize
        self.backbone = for_inference(backbone, DTYPES[precision])
        self.device = next(backbone.parameters()).device
        mean, std = torch.tensor([preprocessing.mean, preprocessing.std], dtype=torch.float64)[:, :, None, None]
        self.ordered = preprocessing.ordered
        self.scale, self.shift = (1 / (255 * std)).float().to(self.device), (-mean / std).float().to(self.device)
        self.local = threading.local()
        ends = self.layer is None and features == "pooled"
        plain = (backbone.pooling, (backbone.embed_dim,))
        self.pooling, self.shape = plain if ends else self.look(preprocessing.image_size)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, stopped: threading.Event | None = None) -> Tensor:
        """The pass over one batch.

        Args:
            pixels: uint8 (B, 3, h, w), as :meth:`Preprocessing.resize_crop` gives.
            stopped: ends the pass at the next layer once it is set.

        Returns:
            float32 (B, *shape) on the backbone's device.

        Raises:
            Stopped: ``stopped`` was set.
        """
        backbone = self.own_modules()
        self.local.stopped = stopped
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        normalised = self.ordered(pixels.to(self.device)).float() * self.scale + self.shift
        with full_float32() if self.precision == "32" else nullcontext():
            if self.layer or self.features != "pooled":
                kept = self.pool(self.stage_output(backbone, normalised))
            else:
                kept = backbone(normalised.to(DTYPES[self.precision]))
        return F.normalize(kept.float()) if self.normalize else kept.float()

    def stage_output(self, backbone: Backbone, pixels: Tensor) -> Tensor:
        """A map (B, C, h, w) or tokens: patches (B, T, C) at the end, all (B, P + T, C) of an earlier stage."""
        return backbone.forward_stage(pixels.to(DTYPES[self.precision]), self.layer or backbone.stage_names[-1])

    def pool(self, output: Tensor) -> Tensor:
        """What is kept of a stage's output."""
        prefix = self.class_tokens(output)
        if self.features != "pooled":
            return output[:, prefix:]
        if output.ndim == 4:
            return output.mean((2, 3))
        return output[:, 0] if self.pools_class_token(output) else output.mean(1)

    def class_tokens(self, output: Tensor) -> int:
        """How many tokens stand before the patches; torchvision's transformers have one."""
        return getattr(self.backbone, "prefix", 1) if self.layer and output.ndim == 3 else 0

    def pools_class_token(self, output: Tensor) -> bool:
        """Whether the class token stands for the image; before the first block it is the same for all."""
        return self.class_tokens(output) > 0 and self.layer != self.backbone.stage_names[0]

    @torch.inference_mode()
    def look(self, image_size: tuple[int, int]) -> tuple[str, tuple[int, ...]]:
        """Pooling and shape, found on a blank image.

        Raises:
            UserError: tokens wanted of a map, or the other way round.
        """
        output = self.stage_output(self.own_modules(), torch.zeros(1, 3, *image_size, device=self.device))
        kind = "map" if output.ndim == 4 else "tokens"
        if self.features not in ("pooled", kind):
            gives = f"{self.backbone.name} has a map" if kind == "map" else f"{self.backbone.name} has tokens"
            raise UserError(f"{gives} of {tuple(output.shape[1:])}, no {self.features}; use --features {kind}")
        pooling = "none" if self.features != "pooled" else "cls" if self.pools_class_token(output) else "mean"
        return pooling, tuple(self.pool(output).shape[1:])

    def describe(self) -> dict[str, Any]:
        """What the result depends on besides weights, preprocessing and images, for the metadata."""
        return {
            "pooling": self.pooling,
            "layer": self.layer,
            "features": self.features,
            "embed_dim": math.prod(self.shape),
            "shape": list(self.shape),
            "normalize": self.normalize,
            "dtype": str(DTYPES[self.precision]).removeprefix("torch."),
        }

    def own_modules(self) -> Backbone:
        """The calling thread's modules: hooks, and what else a pass leaves in a module, stay in its thread."""
        if not hasattr(self.local, "backbone"):
            self.local.backbone, self.local.stopped = replica(self.backbone), None
            for module in self.local.backbone.modules():
                if next(module.parameters(recurse=False), None) is not None:
                    module.register_forward_pre_hook(self.check)
        own: Backbone = self.local.backbone
        return own

    def check(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Give the pass up if nobody waits for it any more."""
        if self.local.stopped and self.local.stopped.is_set():
            raise Stopped


def find_stage(backbone: Backbone, layer: str) -> str:
    """The stage that a name, or the number at its end, means.

    Raises:
        UserError: none, or several.
    """
    numbers = {name: re.search(r"\d+$", name) for name in backbone.stages}
    found = [name for name, number in numbers.items() if number and number[0] == layer]
    if layer in backbone.stages:
        return layer
    if len(found) != 1:
        raise UserError(f"{backbone.name} has no stage {layer!r}; its stages: {', '.join(backbone.stages)}")
    return found[0]


def replica(backbone: Backbone) -> Backbone:
    """A copy of the modules over the same tensors."""
    return copy.deepcopy(backbone, {id(t): t for t in (*backbone.parameters(), *backbone.buffers())})


def for_inference(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """The network as it runs fastest, its own weights left alone: BatchNorm folded into the convolutions
    before it, which are then laid out channels last, and all cast once.
    """
    convolutional = any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    if not convolutional and dtype == torch.float32:
        return backbone
    fast = copy.deepcopy(backbone).eval().requires_grad_(False)
    set_attention = getattr(fast.model, "set_attn_implementation", None)  # a Hugging Face model's
    if set_attention and dtype == torch.bfloat16 and next(backbone.parameters()).device.type == "cpu":
        set_attention("eager")  # two plain products take 0.6 of the time of PyTorch's fused attention there
    if convolutional:
        fold_batchnorm(fast.model)
        fast.to(memory_format=torch.channels_last)
    return fast.to(dtype)


def fold_batchnorm(module: nn.Module) -> None:
    """Fold every BatchNorm that follows a convolution, and nothing else, into it (Jacob et al. 2017,
    arXiv:1712.05877, section 3.2). Where the flow of data cannot be traced, parts of the module are tried.
    """
    if not any(isinstance(child, nn.BatchNorm2d) for child in module.modules()):
        return
    try:
        nodes = list(fx.Tracer().trace(module).nodes)
    except Exception:  # control flow that depends on the input raises whatever it likes under tracing
        for child in module.children():
            fold_batchnorm(child)
        return
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = module.get_submodule(str(before.target)), module.get_submodule(str(node.target))
        once = calls[before.target] == calls[node.target] == 1
        if once and type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            module.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            module.set_submodule(str(node.target), nn.Identity())
