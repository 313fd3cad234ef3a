"""One extractor in five forms, on the same images: `python tests/bench/bench_parity.py --help`.

Fits ResNet18 and a small ViT, frozen and fine-tuned, for one epoch each; exports the checkpoint; and prints the
largest absolute difference of the embeddings from the checkpoint's.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from transformers import AutoImageProcessor, AutoModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.tiny import RESNET, VIT, fit
from transferkit.extractor import Extractor
from transferkit.extractor.onnx import export
from transferkit.training.trainer import quiet_libraries

BACKBONES = {"ResNet18": {**RESNET, "preprocessing": {"image_size": 32}}, "ViT": VIT}
REGIMES = ("frozen", "full")


def draw_images(root: Path, count: int) -> list[Path]:
    """Write PNG images of two classes and several sizes: coarse colors under noise."""
    noise, paths = np.random.default_rng(0), []
    for number in range(count):
        label = ("apples", "limes")[number % 2]
        coarse = np.clip(noise.normal((190, 50, 40) if number % 2 else (70, 180, 60), 60, (5, 6, 3)), 0, 255)
        size = tuple(int(side) for side in noise.integers(40, 120, 2))
        image = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        split = "train" if number % 4 < 2 else "val"
        paths.append(root / split / label / f"{number}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        image.save(paths[-1])
    return paths


def decode(path: Path) -> Tensor:
    """Return the pixels that Pillow decodes: uint8 (3, H, W)."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def torchvision_embedding(folder: Path, images: list[Tensor]) -> Tensor:
    """Embed with torchvision alone: its preset's transforms and a strictly loaded model."""
    config = json.loads((folder / "config.json").read_text())
    steps = json.loads((folder / "preprocessor_config.json").read_text())
    model = models.resnet18(num_classes=len(config["id2label"])).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.fc = nn.Identity()
    transform = ImageClassification(
        crop_size=steps["crop_size"]["height"],
        resize_size=steps["size"]["shortest_edge"],
        mean=steps["image_mean"],
        std=steps["image_std"],
        interpolation=InterpolationMode.BILINEAR,
    )
    embedding: Tensor = model(torch.stack([transform(image) for image in images]))
    return embedding


def transformers_embedding(folder: Path, images: list[Tensor]) -> Tensor:
    """Embed with transformers alone."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    hidden: Tensor = model(**processor(images, return_tensors="pt")).last_hidden_state
    return hidden[:, 0]


def onnx_embedding(folder: Path, extractor: Extractor, images: list[Tensor]) -> Tensor:
    """Embed with ONNX Runtime, on the extractor's pixels."""
    pixels = torch.stack([extractor.preprocessing(image) for image in images])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return torch.from_numpy(session.run(["embedding"], {"pixel_values": pixels.numpy()})[0])


@torch.inference_mode()
def parity(checkpoint: Path, folder: Path, paths: list[Path]) -> dict[str, float]:
    """Export a checkpoint of ResNet18 or a ViT; return each form's largest difference to the checkpoint's embeddings.

    Args:
        checkpoint: of a fit.
        folder: directory of the exports.
        paths: images of any size.
    """
    extractor = Extractor.from_pretrained(checkpoint)
    images = [decode(path) for path in paths]
    export(extractor, folder / "export", onnx=True)
    opened = Extractor.from_pretrained(folder / "export")
    opened.save_pretrained(folder / "again")
    plain: Callable[..., Tensor] = torchvision_embedding if extractor.name == "resnet18" else transformers_embedding
    forms = {
        "library": plain(folder / "export", images),
        "export": opened.embed(paths),
        "exported again": Extractor.from_pretrained(folder / "again").embed(paths),
        "onnx": onnx_embedding(folder / "export", extractor, images),
    }
    own = extractor.embed(paths)
    return {form: float((embedding - own).abs().max()) for form, embedding in forms.items()}


def trained(folder: Path, root: Path, backbone: str, regime: Any) -> Path:
    """Return a checkpoint of a short fit."""
    fit(folder / "run", root, {**BACKBONES[backbone], "regime": regime, "lr_backbone": 1e-3}, epochs=1)
    return folder / "run" / "checkpoints" / "best.ckpt"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("checkpoints", nargs="*", type=Path, help="instead of the fits: checkpoints of any size")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        paths = draw_images(root / "images", options.images)
        cases = [(str(path), lambda folder, path=path: path) for path in options.checkpoints] or [
            (
                f"{name} {regime}",
                lambda folder, name=name, regime=regime: trained(folder, root / "images", name, regime),
            )
            for name in BACKBONES
            for regime in REGIMES
        ]
        print(f"{options.images} images, largest absolute difference to the checkpoint's embeddings")
        for number, (title, make) in enumerate(cases):
            folder = root / str(number)
            differences = parity(make(folder), folder, paths)
            print(f"{title:<20}", *(f"{form} {value:.1e}" for form, value in differences.items()), sep="  ")


if __name__ == "__main__":
    main()
