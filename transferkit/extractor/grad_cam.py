"""What a network looked at: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), on maps and on patch tokens.

A convolutional network is explained by its last map. In a transformer the class token alone is read after the last
block, so its patch tokens there say nothing about the class: it is explained by the tokens that enter the last block,
without class, distillation and register tokens.

Gradients are computed only from the explained features on, so that a pass takes little longer than a plain one, and
the network's parameters stay as they are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from transferkit.backbones import Backbone
from transferkit.backbones.token_grid import as_grid
from transferkit.errors import UserError
from transferkit.extractor.core import ExtractorCore, head_logits
from transferkit.extractor.forward import network_input
from transferkit.runtime.full_float32 import full_float32

TINY = 1e-7  # added to a maximum before dividing by it
ATOL, RTOL = 1e-5, 1e-4  # of two results of the same layers


class Maps(NamedTuple):
    """What a pass over a batch gives.

    Attributes:
        heat: float32 (B, h, w) in [0, 1], one value per pixel of the network's input.
        logits: float32 (B, classes).
        embedding: float32 (B, D).
        target: int64 (B,), the explained class.
    """

    heat: Tensor
    logits: Tensor
    embedding: Tensor
    target: Tensor


class Place(NamedTuple):
    """Where the explained features are.

    Attributes:
        module: the module.
        is_input: whether they enter it, otherwise they leave it.
        prefix: how many tokens precede those of the patches.
        channels_last: whether a map is (B, h, w, C).
    """

    module: nn.Module
    is_input: bool = False
    prefix: int = 0
    channels_last: bool = False


class GradCam:
    """Grad-CAM of an extractor with a head; call it with a batch of pixels.

    Args:
        extractor: a trained extractor, on the device to use.

    Raises:
        UserError: it has no head, or its features have no place in the image.
    """

    def __init__(self, extractor: ExtractorCore) -> None:
        if extractor.head is None:
            raise UserError(f"{extractor.name} has no head, so no class to explain; train one with fit")
        self.extractor, self.head = extractor, extractor.head
        with torch.no_grad():
            self.place = find_place(extractor)

    def __call__(self, pixels: Tensor, target: Sequence[int] | None = None) -> Maps:
        """Explain one batch.

        Args:
            pixels: uint8 (B, 3, h, w), as :meth:`Preprocessing.resize_crop` returns them.
            target: the class of each image to explain; by default the most probable one.
        """
        extractor = self.extractor
        inputs = network_input(extractor.backbone, extractor.preprocessing, pixels)
        kept: list[Tensor] = []
        with full_float32(), torch.no_grad():
            handle = cut(self.place, kept)
            try:
                embedding: Tensor = extractor.backbone(inputs)  # with gradients from the cut on
            finally:
                handle.remove()
            logits = head_logits(self.head, embedding, extractor.l2_normalize)
            chosen = logits.argmax(1) if target is None else torch.tensor(target, device=logits.device)
            score = logits.gather(1, chosen[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, kept[-1])
            activation, slope = (self.as_map(each.detach(), pixels) for each in (kept[-1], gradient))
            heat = class_activation(activation.float(), slope.float(), (pixels.shape[2], pixels.shape[3]))
        return Maps(heat, logits.detach().float(), embedding.detach().float(), chosen)

    def as_map(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Return features as a map (B, C, h, w), without the tokens before the patches."""
        if features.ndim == 3:
            return as_grid(features[:, self.place.prefix :], pixels.shape[2], pixels.shape[3])
        return features.movedim(-1, 1) if self.place.channels_last else features


def class_activation(activation: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Return Grad-CAM's map: channels weighted by their mean gradient, the positive part, scaled to [0, 1].

    Args:
        activation: (B, C, h, w).
        gradient: (B, C, h, w), of the class's logit.
        size: (height, width) of the result.

    Returns:
        (B, height, width); all zeros where nothing speaks for the class.
    """
    weights = gradient.mean((2, 3), keepdim=True)
    coarse = scaled((weights * activation).sum(1).relu())
    return scaled(F.interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)[:, 0])


def scaled(maps: Tensor) -> Tensor:
    """Return maps (B, h, w), each shifted and scaled to [0, 1]."""
    shifted = maps - maps.amin((1, 2), keepdim=True)
    return shifted / (shifted.amax((1, 2), keepdim=True) + TINY)


def cut(place: Place, kept: list[Tensor]) -> RemovableHandle:
    """Let gradients begin at a place: what passes it is kept, and everything after it is recorded.

    The recording ends with the context in which the pass runs.
    """

    def begin(features: Tensor) -> Tensor:
        kept.append(features.detach().clone().requires_grad_())
        torch.set_grad_enabled(True)
        return kept[-1].clone()  # what follows may work in place

    def before(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if inputs:
            return (begin(inputs[0]), *inputs[1:]), options
        first = next(iter(options))
        return inputs, {**options, first: begin(options[first])}

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return (begin(output[0]), *output[1:]) if isinstance(output, tuple) else begin(output)

    if place.is_input:
        return place.module.register_forward_pre_hook(before, with_kwargs=True)
    return place.module.register_forward_hook(after)


def find_place(extractor: ExtractorCore) -> Place:
    """Return where the explained features of an extractor are, by passes over one image of noise.

    Raises:
        UserError: no module gives the features before pooling.
    """
    backbone, (height, width) = extractor.backbone, extractor.preprocessing.image_size
    noise = torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = network_input(backbone, extractor.preprocessing, noise)
    features = backbone.forward_features(inputs)
    if features.ndim == 3 and len(backbone.stages) > 1:
        entering = backbone.forward_stage(inputs, backbone.stage_names[-2])
        if entering.ndim == 3 and entering.shape[1] > features.shape[1] and entering.shape[2] == features.shape[2]:
            module = backbone.stage_modules(backbone.stage_names[-1])[0]
            return Place(module, is_input=True, prefix=entering.shape[1] - features.shape[1])
    return module_with(backbone, inputs, features)


def module_with(backbone: Backbone, inputs: Tensor, features: Tensor) -> Place:
    """Return the last module that gives the features.

    Raises:
        UserError: there is none.
    """
    found: list[Place] = []

    def compare(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            for channels_last in (False, True)[: first.ndim - 2]:
                moved = first.movedim(-1, 1) if channels_last else first
                if moved.shape == features.shape and is_like(moved, features):
                    found.append(Place(module, channels_last=channels_last))

    handles = [module.register_forward_hook(compare) for module in backbone.model.modules()]
    try:
        backbone(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UserError(f"{backbone.name} gives no map or tokens with a place in the image; explain another network")
    return found[-1]


def is_like(output: Tensor, features: Tensor) -> bool:
    """Whether a module's output is the features, before or after a last ReLU (DenseNet's is a function)."""
    return any(torch.allclose(each, features, RTOL, ATOL) for each in (output, output.relu()))
