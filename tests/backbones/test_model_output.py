"""What is known of families without a forward pass is what a pass shows."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.backbones.families import CONFIGS, DUALS, make, save
from transferkit import backbones
from transferkit.backbones.base import Backbone
from transferkit.backbones.families import KNOWN, SMALLEST
from transferkit.backbones.from_transformers import TransformersBackbone, at_size
from transferkit.backbones.timm_output import MAPS, TOKENS, known_output
from transferkit.errors import UserError

ALL = {**CONFIGS, **DUALS}
FAMILIES = [name for name in ALL if getattr(ALL[name], "vision_config", ALL[name]).model_type in KNOWN]
TIMM = {  # class -> its smallest models
    "VisionTransformer": ["test_vit"],
    "Eva": ["eva02_tiny_patch14_224"],
    "ResNet": ["test_resnet", "resnet18d"],
    "EfficientNet": ["test_efficientnet", "mnasnet_small"],
    "MobileNetV3": ["mobilenetv3_small_050"],
    "ConvNeXt": ["test_convnext", "convnext_atto"],
    "ByobNet": ["test_byobnet", "repvgg_a0"],
    "RegNet": ["regnetx_002"],
    "SwinTransformer": ["swin_tiny_patch4_window7_224"],
}
QUICK = ("test_vit", "test_resnet", "test_efficientnet", "test_byobnet", "test_convnext")
MODELS = [
    pytest.param(kind, name, marks=() if name in QUICK else pytest.mark.slow) for kind in TIMM for name in TIMM[kind]
]


def test_every_known_family_is_tested() -> None:
    assert {getattr(ALL[name], "vision_config", ALL[name]).model_type for name in FAMILIES} == set(KNOWN)
    assert set(TIMM) == {*TOKENS, *MAPS}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(family, tmp_path)
    sized = hasattr(getattr(ALL[family], "vision_config", ALL[family]), "image_size")
    given = {} if sized else {"image_size": SMALLEST}  # ResNets have no size of their own
    for pooling in (None, "projection") if family in DUALS else (None,):
        with monkeypatch.context() as patched:
            patched.setattr(Backbone, "dry_run", lambda *_: pytest.fail("a pass over a blank image"))
            backbone: Any = backbones.build(str(tmp_path), pooling=pooling, preprocessing=given)
        assert not any(module.training for module in backbone.modules())
        found = backbone.dry_run(backbone.describe_output)
        prefix = None if backbone.gives_map else backbone.prefix
        assert (prefix, backbone.poolings) == (found.prefix, found.poolings)
        assert backbone.embed_dim == found.widths[backbone.pooling]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in CONFIGS])
def test_families_at_another_size(family: str) -> None:
    """Whether the model is taken as it is, and takes the size."""
    model: Any = make(family)
    known = KNOWN[model.config.model_type]
    patch = getattr(model.config, "patch_size", 1)
    size = 84 if patch == 14 else 96
    if not known.any_size:
        assert at_size(model, (size, size)) is not model
        return
    assert at_size(model, (size, size)) is model
    scheme = backbones.build("resnet18", "none").preprocessing.replace(image_size=size)
    backbone = TransformersBackbone(family, model, scheme)
    found = backbone.dry_run(backbone.describe_output)
    assert (backbone.poolings, backbone.embed_dim) == (found.poolings, found.widths[backbone.pooling])
    if found.prefix is not None:
        assert backbone.prefix == found.prefix


def test_sizes_that_are_not_known_to_fit_are_tried() -> None:
    scheme = backbones.build("resnet18", "none").preprocessing
    for size in ((8, 8), (70, 33)):
        with pytest.raises(UserError, match="cannot embed an image of"):
            TransformersBackbone("dinov2", make("dinov2"), scheme.replace(image_size=(size[0] - 3, 5)))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_models_of_timm(kind: str, name: str) -> None:
    classified = "logits" in backbones.build(name, "none").poolings
    for pooling in (None, "logits") if classified else (None,):
        backbone: Any = backbones.build(name, "none", pooling)
        assert type(backbone.model).__name__ == kind
        known = known_output(backbone.model, backbone.preprocessing.image_size)
        assert known is not None and known == backbone.dry_run(backbone.describe_output)
        assert known_output(backbone.model, (8, 8)) is None


def test_a_classifier_of_timm_is_not_needed_for_its_width() -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    found = known_output(model, tuple(model.pretrained_cfg["input_size"][1:]))
    assert found is not None and found[1] == 7
