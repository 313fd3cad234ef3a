"""A backbone in two parts gives the embedding, and the gradients, of a single pass."""

import copy

import pytest
import torch

from tests.backbones.families import CONFIGS, make
from transferkit.backbones import Backbone, build
from transferkit.backbones.cut import Cut, find_cut
from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.images.preprocessing import Preprocessing

QUICK = ("vit", "dinov3_vit")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
TORCHVISION = ("resnet18", "efficientnet_b0", "convnext_tiny", "densenet121", "swin_t", "vgg11", "shufflenet_v2_x0_5")


def assert_cut_everywhere(backbone: Backbone) -> None:
    """Cut before each stage; the last stages see no pixels, and what they learn is the same."""
    backbone.eval()
    pixels = torch.randn(3, 3, *backbone.preprocessing.image_size)
    with torch.no_grad():
        whole = backbone(pixels)
    for first in range(1, len(backbone.stages)):
        cut = Cut(backbone, first)
        with torch.no_grad():
            entering = cut.enter(backbone, pixels)
            other = copy.deepcopy(backbone)  # the cut has names, so that it applies to a copy
            parts = cut.rest(other, entering.flatten(1))
            again = other(pixels)
        assert tuple(entering.shape) == (3, *cut.shape)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
        assert torch.equal(again, whole)  # nothing is left behind
    grads = []
    for run in (lambda: backbone(pixels), lambda: cut.rest(backbone, entering.flatten(1))):
        backbone.zero_grad()
        torch.autograd.backward(run().square().sum())
        last = [p for m in backbone.stage_modules(backbone.stage_names[-1]) for p in m.parameters()]
        grads.append([p.grad.clone() for p in last if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for one, other_grad in zip(*grads, strict=True):
        torch.testing.assert_close(one, other_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family: str) -> None:
    size = getattr(CONFIGS[family], "image_size", 32)
    assert_cut_everywhere(TransformersBackbone(family, make(family), Preprocessing.vit().replace(image_size=size)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_models_of_torchvision(name: str) -> None:
    assert_cut_everywhere(build(name, "none", preprocessing={"image_size": 64}))


def test_a_network_whose_last_stages_need_more_is_left_alone() -> None:
    backbone = TransformersBackbone("vit", make("vit"), Preprocessing.vit().replace(image_size=32))
    assert find_cut(backbone, 1) is not None
    assert find_cut(backbone, 0) is None and find_cut(backbone, len(backbone.stages)) is None
    forward = backbone.forward
    backbone.forward = lambda pixels: forward(pixels) + pixels.mean()  # type: ignore[method-assign]
    assert find_cut(backbone, 1) is None
