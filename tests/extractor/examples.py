"""Extractors that the tests save, small enough to take milliseconds."""

import transformers
from torch import nn

from tests.backbones.families import make
from transferkit import backbones
from transferkit.backbones.from_transformers import TransformersBackbone, takes_pooler
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing

CLASSES = ["ant", "bee", "wasp"]


def with_head(backbone: backbones.Backbone, preprocessing: Preprocessing, l2_normalize: bool = False) -> Extractor:
    """An extractor with a head of three classes, and a record as a fit leaves it."""
    head = nn.Linear(backbone.embed_dim, len(CLASSES))
    record = {"regime": "full", "class_counts": {"ant": 3}, "metrics": {"val/acc": 0.5}, "other": 1}
    return Extractor(backbone, preprocessing, head, CLASSES, l2_normalize, record)


def resnet18(pooling: str = "avg", l2_normalize: bool = False) -> Extractor:
    """ResNet18 on 64 pixels."""
    backbone = backbones.build("resnet18", "none", pooling)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return with_head(backbone, Preprocessing.imagenet().replace(image_size=64), l2_normalize)


def transformer(family: str, pooling: str | None, l2_normalize: bool = False) -> Extractor:
    """A tiny model of a family that takes 32 pixels, or as many as it was made for; by default its own pooling."""
    model = make(family)
    if pooling != "pooler" and takes_pooler(type(model)):  # built without its pooling layer, as from_pretrained does
        plain = type(model)(model.config, add_pooling_layer=False).eval()
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("pooler.")})
        model = plain
    size = getattr(model.config, "image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    scheme = Preprocessing.from_hf(transformers.ViTImageProcessor(size={"height": height, "width": width}).to_dict())
    return with_head(TransformersBackbone("someone/model", model, scheme, pooling), scheme, l2_normalize)
