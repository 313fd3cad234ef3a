"""One small network per kind of architecture, with random weights, as extractors."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from tests.backbones.test_from_timm import save as save_timm
from tests.extractor.examples import transformer
from transferkit.extractor import Extractor


def torchvision(name: str) -> Extractor:
    """A torchvision network on 64 pixels, whose BatchNorm has seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Extractor.from_pretrained(name, "none", preprocessing={"resize": [64, 64], "crop": [64, 64]})
    for module in made.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return made


def timm() -> Extractor:
    """A network as timm saves it."""
    with TemporaryDirectory() as folder:
        save_timm("test_efficientnet", Path(folder, "saved"))
        return Extractor.from_pretrained(str(Path(folder, "saved")))


NETWORKS: dict[str, Callable[[], Extractor]] = {
    "resnet18": lambda: torchvision("resnet18"),
    "mobilenet_v3_small": lambda: torchvision("mobilenet_v3_small"),
    "vit": lambda: transformer("vit", "cls"),
    "dinov2_with_registers": lambda: transformer("dinov2_with_registers", "cls+mean"),
    "convnext": lambda: transformer("convnext", "mean"),
    "timm": timm,
}


def pixels(extractor: Extractor, images: int = 12) -> Tensor:
    """Random pixels as the preprocessing gives them: uint8 (B, 3, h, w)."""
    size = (images, 3, *extractor.preprocessing.image_size)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a row, relative to the row's length."""
    found, expected = found.cpu().double().flatten(1), expected.cpu().double().flatten(1)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def cosine(found: Tensor, expected: Tensor) -> float:
    """The smallest cosine of two rows of the same image."""
    return float(nn.functional.cosine_similarity(found.cpu().double(), expected.cpu().double()).min())
