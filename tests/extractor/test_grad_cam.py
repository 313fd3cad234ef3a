"""Grad-CAM is that of the package grad-cam, depends on the weights (Adebayo et al. 2018), and is quick."""

import copy
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backbones.families import CONFIGS, save
from tests.tiny import VIT
from transferkit import backbones
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import network_input
from transferkit.extractor.grad_cam import GradCam, class_activation
from transferkit.images.preprocessing import Preprocessing

CLASSES = list("abcde")


def trained(backbone: backbones.Backbone, l2_normalize: bool = False) -> Extractor:
    """An extractor with a head of five classes; weights that make maps with some contrast."""
    head = nn.Linear(backbone.embed_dim, len(CLASSES))
    nn.init.normal_(head.weight)
    return Extractor(backbone, head=head, class_names=CLASSES, l2_normalize=l2_normalize)


@pytest.fixture(scope="module")
def extractors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Extractor]:
    """Name -> an extractor, built once."""

    @cache
    def build(name: str) -> Extractor:
        torch.manual_seed(0)
        if name == "dinov2":
            save("dinov2_with_registers", folder := tmp_path_factory.mktemp("dinov2"))
            return trained(backbones.build(str(folder), preprocessing={"image_size": 56}))
        if name.startswith("vit "):
            pooling = name.split()[1]
            return trained(backbones.build(VIT["backbone"], "none", pooling, architecture=VIT["architecture"]))
        if name == "vit_b_32":
            return trained(backbones.build("vit_b_32", "none", architecture={"image_size": 64}))
        return trained(backbones.build(name, "none", preprocessing={"image_size": 96}))

    return build


# The layer whose output is explained, and the tokens before the patches.
QUICK = ("resnet18", "vit cls", "dinov2")
LAYERS: dict[str, tuple[Callable[[nn.Module], nn.Module], int | None]] = {
    "resnet18": (lambda model: model.layer4[-1], None),
    "vit cls": (lambda model: model.layers[-2], 1),
    "dinov2": (lambda model: model.encoder.layer[-2], 5),
    "vit cls+mean": (lambda model: model.layers[-2], 1),
    "vit_b_32": (lambda model: model.encoder.layers[-2], 1),
    "swin_t": (lambda model: model.permute, None),
}


class Classifier(nn.Module):
    """Normalized pixels -> logits, in plain PyTorch."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.backbone, self.head, self.l2_normalize = extractor.backbone, extractor.head, extractor.l2_normalize

    def forward(self, inputs: Tensor) -> Tensor:
        embedding = self.backbone(inputs)
        logits: Tensor = self.head(F.normalize(embedding) if self.l2_normalize else embedding)
        return logits


def random_pixels(extractor: Extractor, count: int = 3) -> Tensor:
    """Coarse random pictures: uint8 (count, 3, h, w)."""
    size = extractor.preprocessing.image_size
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 255
    return F.interpolate(coarse, size, mode="bilinear").to(torch.uint8)


def of_package(name: str, extractor: Extractor, pixels: Tensor, target: list[int] | None) -> Tensor:
    """The maps of the package grad-cam."""
    layer, prefix = LAYERS[name]

    def grid(tokens: Tensor) -> Tensor:
        side = round((tokens.shape[1] - (prefix or 0)) ** 0.5)
        return tokens[:, prefix:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)

    inputs = network_input(extractor.backbone, extractor.preprocessing, pixels)
    targets = None if target is None else [ClassifierOutputTarget(each) for each in target]
    place = layer(extractor.backbone.model)
    reshape = None if prefix is None else grid
    with GradCAM(model=Classifier(extractor), target_layers=[place], reshape_transform=reshape) as package:
        return torch.from_numpy(package(input_tensor=inputs, targets=targets))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
@pytest.mark.parametrize(("target", "l2_normalize"), [(None, False), ([4, 0, 2], True)], ids=["predicted", "given, l2"])
def test_equal_to_the_package(
    name: str, target: list[int] | None, l2_normalize: bool, extractors: Callable[[str], Extractor]
) -> None:
    extractor = extractors(name)
    extractor.l2_normalize = l2_normalize
    pixels = random_pixels(extractor)
    expected = of_package(name, extractor, pixels, target)
    maps = GradCam(extractor)(pixels, target)
    assert expected.std() > 0.05  # not the same everywhere
    torch.testing.assert_close(maps.heat, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(maps.embedding, extractor(pixels), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.logits, extractor.classify(maps.embedding), atol=1e-5, rtol=1e-4)
    assert maps.target.tolist() == (target or maps.logits.argmax(1).tolist())


def test_the_extractor_stays_as_it_is(extractors: Callable[[str], Extractor]) -> None:
    extractor = extractors("resnet18")
    extractor.backbone.zero_grad()
    learns = [parameter.requires_grad for parameter in extractor.backbone.parameters()]
    before = extractor(random_pixels(extractor))
    assert torch.is_grad_enabled()
    GradCam(extractor)(random_pixels(extractor))
    assert torch.is_grad_enabled()
    assert torch.equal(extractor(random_pixels(extractor)), before)
    assert [parameter.requires_grad for parameter in extractor.backbone.parameters()] == learns
    assert all(parameter.grad is None for parameter in extractor.backbone.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in extractor.backbone.modules())


def randomize(extractor: Extractor, stages: int) -> None:
    """Draw the weights of the head and of the last stages anew, as the paper's cascade does from the top down."""
    assert extractor.head is not None
    names = extractor.backbone.stage_names[len(extractor.backbone.stages) - stages :]
    layers = [module for name in names for module in extractor.backbone.stage_modules(name)]
    with torch.no_grad():
        for parameter in (p for module in (extractor.head, *layers) for p in module.parameters() if p.ndim > 1):
            parameter.normal_(std=parameter.std().item())


def likeness(one: Tensor, other: Tensor) -> float:
    """Mean rank correlation of maps (N, h, w); maps without contrast have none."""
    pairs = zip(one.flatten(1), other.flatten(1), strict=True)
    ranks = [spearmanr(a, b).statistic for a, b in pairs if a.std() > 0 and b.std() > 0]
    return sum(ranks) / max(1, len(ranks))


@pytest.mark.parametrize("name", ["vit cls", "dinov2", pytest.param("resnet18", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stages", [0, 1, 99], ids=["head", "last stage", "all"])
def test_other_weights_other_maps(name: str, stages: int, extractors: Callable[[str], Extractor]) -> None:
    """A map that random weights do not change would show the image, not the network (Adebayo et al. 2018)."""
    original = extractors(name)
    pixels, target = random_pixels(original, 4), [0] * 4
    before = GradCam(original)(pixels, target).heat
    assert likeness(before, before) > 0.999
    found = []
    for _ in range(4):
        other = copy.deepcopy(original)
        randomize(other, stages)
        found.append(likeness(before, GradCam(other)(pixels, target).heat))
    assert abs(sum(found) / len(found)) < 0.5


class Convolutions(backbones.Backbone):
    """Four convolutions and a mean, which learn in seconds."""

    poolings = ("avg",)

    def __init__(self) -> None:
        super().__init__()
        self.name, self.pooling, self.embed_dim = "convolutions", "avg", 32
        layers = [(3, 16, 2), (16, 32, 2), (32, 32, 2), (32, 32, 1)]
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after, stride in layers
        ]
        self.model, self.stages = nn.Sequential(*blocks), {f"block {i}": [str(i)] for i in range(4)}
        self.preprocessing = Preprocessing.imagenet().replace(image_size=64)

    def forward_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model(pixels)
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.forward_features(pixels).mean((2, 3))

    def spec(self) -> dict[str, object]:
        return {"source": "test"}


def test_a_trained_network_looks_at_the_object_and_random_weights_do_not() -> None:
    """Noise with a red or a green square, somewhere: the maximum lies on the square (Zhang et al. 2018)."""
    side, square, generator = 64, 16, torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        labels = torch.randint(2, (count,), generator=generator)
        corners = torch.randint(side - square, (count, 2), generator=generator)
        for image, label, (top, left) in zip(images, labels.tolist(), corners.tolist(), strict=True):
            image[:, top : top + square, left : left + square] = 0
            image[label, top : top + square, left : left + square] = 255
        return images, labels, corners

    torch.manual_seed(0)
    backbone = Convolutions()
    extractor = Extractor(backbone, head=nn.Linear(backbone.embed_dim, 2), class_names=["red", "green"])
    model = Classifier(extractor).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        images, labels, _ = draw(32)
        loss = F.cross_entropy(model(network_input(backbone, extractor.preprocessing, images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    images, labels, corners = draw(64)

    def hits(heat: Tensor) -> float:
        places = heat.flatten(1).argmax(1)
        centers = torch.stack([places // side, places % side], 1)
        return float((centers - corners - square / 2).abs().amax(1).le(square / 2 + 4).float().mean())  # half a cell

    maps = GradCam(extractor)(images)
    assert (maps.logits.argmax(1) == labels).float().mean() > 0.95
    assert hits(maps.heat) > 0.9
    alike, hit = [], []
    for stages in (0, 1, 2, 4):  # the cascade: the head, then stage by stage down to the pixels
        others = [copy.deepcopy(extractor) for _ in range(5)]
        for other in others:
            randomize(other, stages)
        heats = [GradCam(other)(images, labels.tolist()).heat for other in others]
        alike.append(sum(likeness(maps.heat, heat) for heat in heats) / 5)
        hit.append(sum(map(hits, heats)) / 5)
    assert max(alike) < 0.8 and alike[-1] < 0.3 and hit[-1] < 0.2, (alike, hit)


def test_no_place_no_head(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet18 has no head"):
        GradCam(Extractor(backbones.build("resnet18", "none")))
    save("dinov3_convnext", tmp_path / "it")
    with pytest.raises(UserError, match="gives no map or tokens with a place in the image"):
        GradCam(trained(backbones.build(str(tmp_path / "it"))))


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in CONFIGS if name not in ("dinov3_convnext", "pvt", "pvt_v2")])
def test_families_of_transformers(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "it")
    extractor = trained(backbones.build(str(tmp_path / "it")))
    pixels = random_pixels(extractor)
    maps = GradCam(extractor)(pixels)
    assert maps.heat.shape == (3, *extractor.preprocessing.image_size)
    assert maps.heat.min() >= 0 and maps.heat.max() <= 1
    torch.testing.assert_close(maps.embedding, extractor(pixels), atol=1e-4, rtol=1e-3)


def test_nothing_speaks_for_the_class() -> None:
    features = torch.rand(2, 3, 4, 4)
    assert torch.equal(class_activation(features, -torch.ones(2, 3, 4, 4), (8, 8)), torch.zeros(2, 8, 8))


def test_a_pass_takes_at_most_three_times_a_forward_pass(extractors: Callable[[str], Extractor]) -> None:
    extractor = extractors("resnet18")
    pixels, grad_cam = random_pixels(extractor, 4), GradCam(extractor)

    def seconds(run: Callable[[Tensor], object]) -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            run(pixels)
            times.append(time.perf_counter() - begin)
        return min(times)

    assert seconds(grad_cam) <= 3 * seconds(extractor)
