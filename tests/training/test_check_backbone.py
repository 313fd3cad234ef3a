"""``check_backbone`` over every family, each with its own configuration and image processor; and what it finds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.families import CONFIGS, DUALS, save
from transferkit import backbones, check_backbone
from transferkit.backbones.base import Backbone
from transferkit.backbones.from_transformers import TransformersBackbone

QUICK = [
    "vit",
    "dinov3_vit",
    "beit",
    "pixio",
    "hiera",
    "swinv2",
    "convnext",
    "bit",
    "poolformer",
    "mlcd",
    "siglip_vision",
]
# Their classifiers have a norm, a class token's norm, or (Data2Vec, saved without it) a pooling layer of their own.
OWN_WEIGHTS = ("cvt", "poolformer", "swiftformer", "data2vec_vision")
TIMM = ["test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_resnet"]
LARGE_TIMM = ["swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224", "efficientformer_l1", "levit_128s"]
LARGE_TIMM += ["mobilenetv3_small_050", "eva02_tiny_patch14_224", "hgnetv2_b0", "fastvit_t8", "vit_tiny_r_s16_p8_224"]
LARGE_TIMM += ["coat_tiny", "crossvit_9_240", "efficientvim_m1"]  # they put out several maps


def some_slow(names: list[str], quick: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("family", some_slow([*CONFIGS], QUICK))
def test_families_of_transformers(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / family)
    results = check_backbone(backbones.build(str(tmp_path / family)))
    if family in OWN_WEIGHTS:
        assert results.pop("embedding").startswith(
            "skipped: transformers' classifier reads what has weights of its own"
        )
    assert set(results.values()) == {"passed"}


@pytest.mark.parametrize("pooling", [None, "projection"])
@pytest.mark.parametrize("family", some_slow([*DUALS], ["altclip"]))
def test_vision_towers(family: str, pooling: str | None, tmp_path: Path) -> None:
    save(family, tmp_path / family)
    results = check_backbone(backbones.build(str(tmp_path / family), pooling=pooling))
    assert set(results.values()) == {"passed"}


@pytest.mark.parametrize("name", some_slow([*TIMM, *LARGE_TIMM], ["test_vit", "test_byobnet"]))
def test_models_of_timm(name: str) -> None:
    assert set(check_backbone(backbones.build(name, "none")).values()) == {"passed"}


@pytest.mark.parametrize("name", some_slow(["resnet18", "vit_b_32", "swin_t", "mobilenet_v3_small"], ["resnet18"]))
def test_models_of_torchvision(name: str) -> None:
    small = {} if name.startswith("vit") else {"resize": [32, 32], "crop": [32, 32]}
    results = check_backbone(backbones.build(name, "none", preprocessing=small))
    assert results.pop("preprocessing") == "skipped: the library has no preprocessing without weights"
    assert set(results.values()) == {"passed"}


def broken(fault: str, tmp_path: Path) -> Backbone:
    """A good backbone with one thing broken."""
    save("vit", tmp_path / "vit")
    backbone: Any = backbones.build(str(tmp_path / "vit"))
    whole = backbone.pool
    if fault == "batch":
        backbone.pool = lambda output: whole(output) - whole(output).mean(0)
    elif fault == "width":
        backbone.embed_dim = 31
    elif fault == "type":
        backbone.pool = lambda output: whole(output).double()
    elif fault == "stages":
        backbone.stages["block 0"].append("layers.1")
    elif fault == "order":
        names = dict(backbone.stages)
        backbone.stages = {"embeddings": names["embeddings"], "late": names["block 1"], "early": names["block 0"]}
    elif fault == "preprocessing":
        backbone.preprocessing = backbone.preprocessing.replace(interpolation="nearest")
    elif fault == "gradient":
        backbone.pool = lambda output: whole(output).detach() + backbone.model.layernorm.bias
    elif fault == "embedding":  # as good as another one for all other checks
        backbone.spec = lambda: TransformersBackbone.spec(backbone) | {"pooling": "mean"}
        backbone.pooling = "mean"
        backbone.poolings = ("mean", "cls", "cls+mean")
    elif fault == "spec":
        described = backbone.spec
        backbone.spec = lambda: described() | {"pooling": "mean"}
    return backbone


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("batch", "batch invariance: batches differ by"),
        ("width", r"shapes: embedding \(3, 32\)"),
        ("type", "shapes: torch.float64 and torch.float32"),
        ("stages", r"stages: layers\.1.* is in the stages \[1, 2\]"),
        ("order", "stages: the stages run in the order"),
        ("preprocessing", "preprocessing: pixels differ by"),
        ("gradient", "gradients: no gradient reaches"),
        ("spec", "spec: the rebuilt backbone"),
        ("embedding", "embedding: the embedding and the library's own differ by"),
    ],
)
def test_what_is_broken_is_found(fault: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backbone(broken(fault, tmp_path))


def test_the_backbone_stays_as_it_is(tmp_path: Path) -> None:
    save("resnet", tmp_path / "resnet")
    backbone = backbones.build(str(tmp_path / "resnet")).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    check_backbone(backbone)
    assert backbone.training
    after: dict[str, Tensor] = backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
