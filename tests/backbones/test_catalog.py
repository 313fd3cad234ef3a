"""What `models` lists is what the libraries build; names are found by a part or a pattern."""

from typing import Any

import pytest
import torch
import transformers
from torchvision import models

from transferkit.backbones import build, catalog, from_torchvision
from transferkit.backbones.catalog import find_models, matches
from transferkit.backbones.known_models import KnownModel, known_models
from transferkit.backbones.model_class import model_class

KNOWN = {model.name: model for model in known_models()}
SMALL = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"]
LARGE = sorted(name for name in from_torchvision.names() if name not in SMALL and KNOWN[name].parameters < 5e7)  # type: ignore[operator]
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
CONFIGS: dict[str, Any] = {
    "google/vit-base-patch16-224-in21k": transformers.ViTConfig(),
    "facebook/dinov2-base": transformers.Dinov2Config(patch_size=14, image_size=518),
    "microsoft/swin-tiny-patch4-window7-224": transformers.SwinConfig(),
    "microsoft/resnet-50": transformers.ResNetConfig(),
    "openai/clip-vit-base-patch32": transformers.CLIPConfig(),
    "google/siglip2-base-patch16-224": transformers.SiglipConfig(),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": transformers.DINOv3ViTConfig(num_register_tokens=4, **BASE),
}


def test_all_of_torchvision_is_listed_with_its_published_parameters() -> None:
    listed = {name for name, model in KNOWN.items() if model.library == "torchvision"}
    assert listed == set(from_torchvision.names())
    counts = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in listed}
    assert {name: KNOWN[name].parameters for name in listed} == counts


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_torchvision_has_the_width_size_and_poolings(name: str) -> None:
    backbone = build(name, "none")
    assert (backbone.embed_dim, backbone.poolings) == (KNOWN[name].embed_dim, KNOWN[name].poolings)
    assert models.get_model_weights(name).DEFAULT.transforms().crop_size == [KNOWN[name].image_size]


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_builds_the_same_number_of_parameters(name: str) -> None:
    choice = model_class(name, CONFIGS[name], None)
    with torch.device("meta"):
        model: Any = choice.kind(choice.config, **choice.options)
    assert sum(tensor.numel() for tensor in model.parameters()) == KNOWN[name].parameters
    assert KNOWN[name].words == (choice.dual is not None)
    width = getattr(choice.config, "hidden_size", None) or choice.config.hidden_sizes[-1]
    assert width == KNOWN[name].embed_dim


@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("google/siglip2-base-patch16-224", "SigLIP2", True),
        ("google/siglip2-base-patch16-224", "google/*224", True),
        ("google/siglip2-base-patch16-224", "siglip2*", False),
        ("resnet18", None, True),
    ],
)
def test_a_pattern(name: str, pattern: str | None, found: bool) -> None:
    assert matches(name, pattern) == found


def test_timm_is_counted_where_few_match() -> None:
    timm = pytest.importorskip("timm")
    (found,) = find_models("test_vit.r160_in1k")
    model = timm.create_model("test_vit")
    counted = sum(tensor.numel() for tensor in model.parameters())
    assert found == KnownModel("test_vit.r160_in1k", "timm", counted, 64, 160, build("test_vit", "none").poolings)
    many = [model for model in find_models("vit_base") if model.library == "timm"]
    assert len(many) > catalog.MOST_BUILT and {model.parameters for model in many} == {None}
