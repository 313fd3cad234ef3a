"""The fast forward pass for inference: within 1e-5 of the library's own numbers in float32.

The network it is made from is never changed, only a copy.
"""

import logging
import math
import re
import threading
from collections.abc import Callable, Sequence, Sized
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.backbones import Backbone
from transferkit.errors import UserError
from transferkit.extractor.cuda_graph import Recorded
from transferkit.extractor.engine import Engine, compile_graph
from transferkit.extractor.fast_modules import channels_last, for_inference, replica
from transferkit.extractor.quantization import Quantization, compile_int8
from transferkit.images.channel_values import channel_values
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime.full_float32 import full_float32
from transferkit.runtime.no_memory import is_out_of_memory

log = logging.getLogger(__name__)

Precision = Literal["32", "bf16", "int8"]
Features = Literal["pooled", "tokens", "map", "unpooled"]

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
RECORDED_FROM = 8  # batches: recording a CUDA graph takes as long as a few
COMPILED_FROM = 500_000  # images: compiling takes half a minute, and saves a fifth to a half of the pass


def network_input(backbone: Backbone, preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    """Normalize pixels for a network, on its device and in its dtype: uint8 (B, 3, h, w) -> float (B, 3, h, w)."""
    parameter = next(backbone.parameters())
    return preprocessing.normalize(pixels.to(parameter.device)).to(parameter.dtype)


def training_input(backbone: Backbone, preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    """Return the :func:`network_input` of a network that trains, in the layout in memory that is faster for it."""
    return channels_last(backbone, network_input(backbone, preprocessing, pixels))


class Stopped(Exception):
    """A forward pass was cancelled."""


class Forward:
    """The forward pass over preprocessed pixels: uint8 (B, 3, h, w) -> float32 (B, *shape).

    Several threads may call it at once: each has its own modules over the same weights. Make a new one when the
    weights have changed.

    Args:
        backbone: the network with its pooling, on the device to use.
        preprocessing: how pixels are normalized.
        precision: ``32``, ``bf16`` for weights and activations in bfloat16, or ``int8``, see
            :mod:`transferkit.extractor.quantization`.
        layer: an earlier stage (``layer3``, ``block 5``, ``5``) instead of the last. Pooling a map takes its mean,
            pooling tokens the class token; if there is none, or no block has filled it yet, their mean.
        features: ``pooled``, or the features before pooling: ``tokens`` (T, C), ``map`` (C, h, w), or ``unpooled`` for
            whichever of the two the network has.
        normalize: whether embeddings are scaled to length 1; a zero embedding stays zero.
        engine: what runs the network, see :mod:`transferkit.extractor.engine`.
        quantization: of this network, for ``int8``.

    Attributes:
        shape: of the result for one image, ``(D,)`` if it is pooled.
        pooling: how features become one embedding; ``none`` if they do not.

    Raises:
        UserError: the network has no such stage or features, or the engine cannot run it.
    """

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        precision: Precision = "32",
        layer: str | None = None,
        features: Features = "pooled",
        normalize: bool = False,
        engine: Engine = "torch",
        quantization: Quantization | None = None,
    ) -> None:
        if normalize and features != "pooled":
            raise UserError(f'`normalize` applies to pooled embeddings, not to `features="{features}"`; leave one out')
        stage = find_stage(backbone, layer) if layer else backbone.stage_names[-1]
        self.layer = None if stage == backbone.stage_names[-1] else stage
        self.precision, self.features, self.normalize = precision, features, normalize
        self.quantization = quantization
        self.engine, computed = engine, DTYPES[precision] if engine == "torch" else torch.float32
        self.preprocessing, self.backbone = preprocessing, self.prepare(backbone, computed)
        self.device = next(backbone.parameters()).device
        self.local = threading.local()
        self.expected, self.compiles = 0, False
        self.recorded: Recorded | None = None
        ends = self.layer is None and features == "pooled"
        plain = (backbone.pooling, (backbone.embed_dim,))
        self.pooling, self.shape = plain if ends else self.infer_shape(preprocessing.image_size)
        self.run: Callable[[Tensor], Tensor] | None = None if engine == "torch" else self.compile()

    def prepare(self, backbone: Backbone, dtype: torch.dtype) -> Backbone:
        """Return the network as it is run."""
        return for_inference(backbone, dtype, pack=self.engine == "torch")

    @torch.no_grad()
    def __call__(self, pixels: Tensor, stopped: threading.Event | None = None) -> Tensor:
        """Run one batch.

        Args:
            pixels: uint8 (B, 3, h, w), as :meth:`Preprocessing.resize_crop` returns them.
            stopped: cancels the pass at the next layer once it is set.

        Returns:
            float32 (B, *shape) on the backbone's device.

        Raises:
            Stopped: ``stopped`` was set.
        """
        if self.run:
            if stopped and stopped.is_set():
                raise Stopped
            kept = self.run(self.preprocessing.normalize(pixels))
            return F.normalize(kept) if self.normalize else kept
        if self.expected and len(pixels) == self.expected:
            return self.repeat(pixels.to(self.device))
        backbone = self.own_modules()
        self.local.stopped = stopped
        with full_float32() if self.precision == "32" else nullcontext():
            kept = self.kept(backbone, network_input(backbone, self.preprocessing, pixels))
        return F.normalize(kept.float()) if self.normalize else kept.float()

    def expect(self, batches: Sequence[Sized], images: int = 0) -> None:
        """Prepare for many batches of one size on a GPU; nothing changes elsewhere, or for a few.

        Their pass is recorded as a CUDA graph, which gives the same bits. For very many images it is compiled before,
        which gives bits of its own.

        Args:
            batches: the batches to come.
            images: of the whole table, also those that an earlier run has embedded, so that both give the same bits.
        """
        many = self.device.type == "cuda" and (len(batches) >= RECORDED_FROM or images >= COMPILED_FROM)
        self.expected = len(batches[0]) if many else 0
        if self.compiles != (images >= COMPILED_FROM):
            self.compiles, self.recorded = images >= COMPILED_FROM, None

    def repeat(self, pixels: Tensor) -> Tensor:
        """Run a batch of the expected size on a GPU; if its pass cannot be recorded, the ordinary one."""
        size, self.expected = self.expected, 0  # the pass itself is the ordinary one
        try:
            if self.recorded is None or not self.recorded.fits(pixels):
                self.recorded = Recorded(self.compile_pass() if self.compiles else self, pixels)
            result = self.recorded(pixels)
        except Exception as error:  # of any kind, from compilers and drivers
            if is_out_of_memory(error):
                self.expected = size
                raise
            log.warning("the pass is neither compiled nor recorded: %s", " ".join(str(error).split())[:200])
            return self(pixels)
        self.expected = size
        return result

    def compile_pass(self) -> Callable[[Tensor], Tensor]:
        """Return the pass over pixels on a GPU as a program of torch.compile."""
        whole = torch.compile(WholePass(self, replica(self.backbone)).eval(), dynamic=False)

        def run(pixels: Tensor) -> Tensor:
            with full_float32() if self.precision == "32" else nullcontext():
                result: Tensor = whole(pixels)
            return result

        return run

    def compile(self) -> Callable[[Tensor], Tensor]:
        """Return the engine's program.

        Raises:
            UserError: the engine cannot run the network.
        """
        graph = Graph(self, replica(self.backbone)).eval()
        if self.quantization:
            normalize = self.preprocessing.normalize
            return compile_int8(graph, normalize, self.quantization, self.engine, self.backbone.name)
        noise = torch.rand(2, 3, *self.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
        example = self.preprocessing.normalize((255 * noise).byte())
        return compile_graph(graph, example, self.engine, self.precision, self.backbone.name)

    def kept(self, backbone: Backbone, inputs: Tensor) -> Tensor:
        """Return what is kept of normalized pixels."""
        if self.layer or self.features != "pooled":
            return self.pool(self.stage_output(backbone, inputs))
        embedding: Tensor = backbone(inputs)
        return embedding

    def stage_output(self, backbone: Backbone, inputs: Tensor) -> Tensor:
        """Return a map (B, C, h, w) or tokens: patches (B, T, C) of the last stage, all (B, P + T, C) of earlier."""
        return backbone.forward_stage(inputs, self.layer or backbone.stage_names[-1])

    def pool(self, output: Tensor) -> Tensor:
        """Return what is kept of a stage's output."""
        prefix = self.class_tokens(output)
        if self.features != "pooled":
            return output[:, prefix:]
        if output.ndim == 4:
            return output.mean((2, 3))
        return output[:, 0] if self.pools_class_token(output) else output.mean(1)

    def class_tokens(self, output: Tensor) -> int:
        """Return how many tokens precede the patches; torchvision's transformers have one."""
        return getattr(self.backbone, "prefix", 1) if self.layer and output.ndim == 3 else 0

    def pools_class_token(self, output: Tensor) -> bool:
        """Return whether the class token represents the image; before the first block it is the same for all."""
        return self.class_tokens(output) > 0 and self.layer != self.backbone.stage_names[0]

    @torch.no_grad()
    def infer_shape(self, image_size: tuple[int, int]) -> tuple[str, tuple[int, ...]]:
        """Return the pooling and the shape of what is kept, by a pass over a blank image.

        Raises:
            UserError: the network has tokens instead of a map, or a map instead of tokens.
        """
        backbone = self.own_modules()
        blank = torch.zeros(1, 3, *image_size, dtype=torch.uint8)
        output = self.stage_output(backbone, network_input(backbone, self.preprocessing, blank))
        kind = "map" if output.ndim == 4 else "tokens"
        if self.features not in ("pooled", "unpooled", kind):
            found = f"{self.backbone.name} has {'a map' if kind == 'map' else 'tokens'} of {tuple(output.shape[1:])}"
            raise UserError(f'{found}, not {self.features}; give `features="{kind}"`')
        pooling = "none" if self.features != "pooled" else "cls" if self.pools_class_token(output) else "mean"
        return pooling, tuple(self.pool(output).shape[1:])

    def describe(self) -> dict[str, Any]:
        """Return what the result depends on besides weights, preprocessing and images, for the metadata."""
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
        """Return the calling thread's modules, so that hooks and other state of a pass stay in its thread."""
        if not hasattr(self.local, "backbone"):
            self.local.backbone, self.local.stopped = replica(self.backbone), None
            for module in self.local.backbone.modules():
                if next(module.parameters(recurse=False), None) is not None:
                    module.register_forward_pre_hook(self.check)
        own: Backbone = self.local.backbone
        return own

    def check(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Raise if the pass is cancelled."""
        if self.local.stopped and self.local.stopped.is_set():
            raise Stopped


class Graph(nn.Module):
    """What a forward pass does between normalized pixels and what is kept, for an engine.

    Args:
        forward: the forward pass.
        backbone: its network, without hooks.
    """

    def __init__(self, forward: Forward, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.kept = backbone, forward.kept

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return what is kept: float32 (B, 3, h, w) -> (B, *shape)."""
        return self.kept(self.backbone, pixel_values)


class WholePass(nn.Module):
    """All that a forward pass does with pixels on its device, for torch.compile.

    Args:
        forward: the forward pass.
        backbone: its network, without hooks.
    """

    def __init__(self, forward: Forward, backbone: Backbone) -> None:
        super().__init__()
        self.graph = Graph(forward, backbone)
        self.preprocessing, self.normalize = forward.preprocessing, forward.normalize
        self.dtype = next(backbone.parameters()).dtype
        self.mean = channel_values(forward.preprocessing.mean, forward.device)
        self.std = channel_values(forward.preprocessing.std, forward.device)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what is kept: uint8 (B, 3, h, w) -> float32 (B, *shape)."""
        kept = self.graph(self.preprocessing.scale(pixels, self.mean, self.std).to(self.dtype)).float()
        return F.normalize(kept) if self.normalize else kept


def find_stage(backbone: Backbone, layer: str) -> str:
    """Return the stage with a name, or with a number at the end of its name.

    Raises:
        UserError: no stage or several match.
    """
    numbers = {name: re.search(r"\d+$", name) for name in backbone.stages}
    found = [name for name, number in numbers.items() if number and number[0] == layer]
    if layer in backbone.stages:
        return layer
    if len(found) != 1:
        raise UserError(f"{backbone.name} has no stage {layer!r}; its stages: {', '.join(backbone.stages)}")
    return found[0]
