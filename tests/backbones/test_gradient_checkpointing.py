"""Gradient checkpointing: the same gradients and statistics from less memory, in every library."""

import copy
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.families import make
from tests.tiny import VIT
from transferkit.backbones import Backbone, build
from transferkit.backbones.adapters import Adapters, add_adapters
from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.backbones.gradient_checkpointing import checkpoint_blocks
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.regimes import freeze, set_mode

SLOW = ["efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16", "densenet121", "mobilenet_v3_small", "regnet_y_400mf"]


def of_torchvision(name: str) -> Backbone:
    size = {} if name == "vit_b_16" else {"image_size": 32 if name.startswith("resnet") else 64}
    return build(name, "none", preprocessing=size)


def of_timm(name: str) -> Backbone:
    timm = pytest.importorskip("timm")
    with TemporaryDirectory() as folder:
        model = timm.create_model(name)
        timm.models.save_for_hf(model, folder, model_config={"pretrained_cfg": model.pretrained_cfg})
        return build(folder)


def of_transformers(family: str) -> Backbone:
    return TransformersBackbone(family, make(family), Preprocessing.vit().replace(image_size=32))


def tiny_vit() -> Backbone:
    return build(VIT["backbone"], "none", architecture=VIT["architecture"])


def with_adapters() -> Backbone:
    backbone = tiny_vit()
    add_adapters(backbone, Adapters(rank=2, alpha=4), seed=0)
    return backbone


CASES = [
    pytest.param(of_torchvision, ("resnet18",), id="resnet18"),
    pytest.param(tiny_vit, (), id="vit"),
    *(pytest.param(of_torchvision, (name,), id=name, marks=pytest.mark.slow) for name in SLOW),
    *(pytest.param(of_timm, (name,), id=name, marks=pytest.mark.slow) for name in ("test_vit", "test_efficientnet")),
    *(pytest.param(of_transformers, (name,), id=name, marks=pytest.mark.slow) for name in ("dinov2", "clip_vision")),
    pytest.param(with_adapters, (), id="lora", marks=pytest.mark.slow),
]  # fmt: skip


def trained(backbone: Backbone, pixels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients, statistics and the bytes kept for the backward pass of one step in training mode."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = backbone(pixels).square().sum()
    loss.backward()
    gradients = {name: value.grad for name, value in backbone.named_parameters() if value.grad is not None}
    return gradients, dict(backbone.named_buffers()), sum(kept.values())


@pytest.mark.parametrize(("maker", "arguments"), CASES)
def test_gradients_and_statistics_are_the_same(maker: Any, arguments: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    plain = maker(*arguments)
    adapted = maker is with_adapters
    first = len(plain.stages) if adapted else 0
    freeze(plain, first)
    again = copy.deepcopy(plain)
    checkpoint_blocks(again)
    for backbone in (plain, again):
        set_mode(backbone, first, training=True)
    pixels = torch.randn(4, 3, *plain.preprocessing.image_size)
    expected, statistics, memory = trained(plain, pixels)
    found, moved, less = trained(again, pixels)
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-6 * float(value.abs().max())), name
    assert all(torch.equal(value, moved[name]) for name, value in statistics.items())
    assert less < memory
    assert list(again.state_dict()) == list(plain.state_dict())


def test_a_copy_has_its_own_weights_and_evaluation_is_the_same() -> None:
    torch.manual_seed(0)
    backbone = tiny_vit()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone.eval()(pixels)
    checkpoint_blocks(backbone)
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(backbone(pixels), expected) and not torch.equal(other(pixels), expected)
