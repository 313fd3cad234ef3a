"""The pass through the first stages of a network, which are frozen, to what enters the first one that learns."""

from typing import Any

import torch
from torch import Tensor

from transferkit.backbones import Backbone
from transferkit.backbones.cut import Cut
from transferkit.extractor.fast_modules import channels_last
from transferkit.extractor.forward import Forward
from transferkit.images.preprocessing import Preprocessing


class FrozenStages(Forward):
    """The pass over preprocessed pixels up to a cut: uint8 (B, 3, h, w) -> float32 (B, *shape).

    The network runs as in training, without the faster copy of inference, so that training goes on from the
    same numbers.

    Args:
        backbone: the network, in eval mode, on the device to use.
        preprocessing: how pixels are normalized.
        cut: the place that the pass goes to.
    """

    def __init__(self, backbone: Backbone, preprocessing: Preprocessing, cut: Cut) -> None:
        self.cut = cut
        super().__init__(backbone, preprocessing, layer=cut.before, features="unpooled")

    def prepare(self, backbone: Backbone, dtype: torch.dtype) -> Backbone:
        """Return the network as it is."""
        return backbone

    def stage_output(self, backbone: Backbone, inputs: Tensor) -> Tensor:
        """Return what enters the stage after the cut."""
        return self.cut.enter(backbone, channels_last(backbone, inputs))

    def pool(self, output: Tensor) -> Tensor:
        """Return all of it."""
        return output

    def describe(self) -> dict[str, Any]:
        """Return what the result depends on besides weights, preprocessing and images."""
        return {**super().describe(), "features": "entering"}
