"""Photographs and networks to measure on: real ones if available, otherwise made here.

``TRANSFERKIT_BENCH_SHARED`` names a folder with ``data/hymenoptera`` and ``checkpoints``; by default ``../shared``.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from transferkit.extractor import Extractor
from transferkit.images.decoding import read_image

SHARED = Path(os.environ.get("TRANSFERKIT_BENCH_SHARED", Path(__file__).parents[3] / "shared"))
BATCH = 32


@dataclass(frozen=True)
class Network:
    """The same weights in a library's plain module and in an extractor.

    Attributes:
        name: name in the table.
        plain: normalized pixels (B, 3, h, w) -> embedding (B, D), as the library computes it.
        module: the library's module.
        options: arguments that transferkit opens it with.
    """

    name: str
    plain: Callable[[Tensor], Tensor]
    module: nn.Module
    options: dict[str, Any]

    def extractor(self) -> Extractor:
        return Extractor.from_pretrained(self.options["backbone"], self.options.get("weights", "DEFAULT"))


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a temporary folder with transferkit's cache in it."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, TRANSFERKIT_CACHE=f"{folder}/cache"):
        yield Path(folder)


def photographs(folder: Path, count: int | None = None) -> Path:
    """Return train/val class folders of JPEG photographs: 244 + 153, or ``count`` in all, evenly spaced."""
    source = SHARED / "data" / "hymenoptera"
    if not source.is_dir():
        source = draw_photographs(folder / "drawn")
    files = sorted(source.rglob("*.jpg"))
    count = min(count or len(files), len(files))
    for file in (files[row * len(files) // count] for row in range(count)):
        copy = folder / "photographs" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder / "photographs"


def draw_photographs(folder: Path) -> Path:
    """Write 500 x 375 JPEGs with detail at every scale, as photographs have; the classes differ slightly in color."""
    noise = np.random.default_rng(0)
    for number in range(397):
        place = folder / ("train" if number < 244 else "val") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        canvas = np.full((375, 500, 3), 128.0)
        canvas[:, :, 0] += 10 * (number % 2)
        for size in (4, 16, 64, 256):
            layer = Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((500, 375))
            canvas += (np.asarray(layer, dtype=float) - 128) * size**-0.3
        Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(place / f"{number:03d}.jpg", quality=90)
    return folder


def resnet(folder: Path) -> Network:
    """Return ResNet18, trained on CIFAR-10 if that checkpoint exists, otherwise random."""
    torch.manual_seed(0)
    weights = SHARED / "checkpoints" / "resnet18-cifar10.safetensors"
    if not weights.is_file():
        weights = folder / "resnet18.safetensors"
        save_file(resnet18(num_classes=10).state_dict(), weights)
    model = resnet18(num_classes=10)
    model.load_state_dict(load_file(weights))
    model.fc = nn.Identity()
    return Network("ResNet18", model.eval(), model, {"backbone": "resnet18", "weights": str(weights)})


def vit_small(folder: Path) -> Network:
    """Return a DINOv2 ViT-S/14, with its weights if they exist, otherwise random."""
    source = SHARED / "checkpoints" / "dinov2-small-saliency"
    if not source.is_dir():
        config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=224, patch_size=14)
        source = save(transformers.Dinov2Model(config), folder / "vit-small")
    return transformer("ViT-S/14", source)


def vit_base(folder: Path) -> Network:
    """Return a ViT-B/16 with random weights."""
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    return transformer("ViT-B/16", save(model, folder / "vit-base"), add_pooling_layer=False)


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Write a Hugging Face directory with preprocessing."""
    model.save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return folder


def transformer(name: str, source: Path, **options: Any) -> Network:
    """Return the network of a Hugging Face directory; its embedding is the class token."""
    model = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, **options).eval()
    return Network(name, lambda pixels: model(pixels).last_hidden_state[:, 0], model, {"backbone": str(source)})


def tensors(paths: list[Path], extractor: Extractor) -> list[Tensor]:
    """Return images decoded, preprocessed and normalized, in batches: float32 (B, 3, h, w)."""
    pixels = torch.stack([extractor.preprocessing(read_image(path)) for path in paths])
    return list(pixels.split(BATCH))


def check_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> str:
    """Assert that embeddings agree; return the largest difference of a row, relative to its length."""
    error = float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())
    assert error <= tolerance, f"embeddings differ by {error:.1e}"
    return f"embeddings within {error:.0e}"
