"""Networks of the usual sizes with random weights, plain and as extractors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torchvision.models import resnet18

from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing

VIT = "google/vit-base-patch16-224-in21k"


class Network(NamedTuple):
    """A plain module that takes normalized pixels, and the extractor that computes the same."""

    plain: nn.Module
    extractor: Extractor


class ClassToken(nn.Module):
    """A transformer whose embedding is its class token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        token: Tensor = self.model(pixels).last_hidden_state[:, 0]
        return token


def resnet() -> Network:
    """ResNet18."""
    extractor = Extractor.from_pretrained("resnet18", "none")
    plain = resnet18()
    plain.load_state_dict(extractor.backbone.model.state_dict(), strict=False)
    plain.fc = nn.Identity()
    return Network(plain.eval(), extractor)


def transformer(model: Any) -> Network:
    """A Hugging Face model, on 224 pixels."""
    scheme = Preprocessing.vit()
    return Network(ClassToken(model.eval()), Extractor(TransformersBackbone("random", model, scheme, "cls"), scheme))


def vit_base(small: bool = False) -> Network:
    """ViT-B/16."""
    few = {"num_hidden_layers": 1} if small else {}
    return transformer(transformers.ViTModel(transformers.ViTConfig(**few), add_pooling_layer=False))


def vit_small(small: bool = False) -> Network:
    """ViT-S/14, DINOv2's."""
    few = {"num_hidden_layers": 1} if small else {}
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=224, patch_size=14, **few)
    return transformer(transformers.Dinov2Model(config))


def makers(small: bool) -> dict[str, Callable[[], Network]]:
    """The networks by name."""
    torch.manual_seed(0)
    return {"ViT-B/16": lambda: vit_base(small), "ResNet18": resnet, "ViT-S/14": lambda: vit_small(small)}
