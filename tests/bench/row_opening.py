"""Time to open a backbone of full size from local files, against the library's own loading.

transferkit reads its file at once, to refuse NaN, where transformers maps it and reads it in the first forward pass: so
theirs reads every weight, too.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import timm
import torch
import transformers
from torchvision import models

from tests.bench.inputs import save, workplace
from tests.bench.timing import Row, measured
from transferkit import backbones

TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
FAMILIES: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "ViT-B/16": lambda: transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False),
    "DINOv2 ViT-S/14": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    ),
    "ConvNeXt-T": lambda: transformers.ConvNextModel(transformers.ConvNextConfig()),
    "Swin-T": lambda: transformers.SwinModel(transformers.SwinConfig(**TINY)),
    "ResNet-50": lambda: transformers.ResNetModel(transformers.ResNetConfig()),
}


def rows(full: bool) -> Iterator[Row]:
    """Random weights of full size, saved as each library saves them; the files are in the system's cache."""
    with workplace() as place:
        for name, make in FAMILIES.items():
            folder = str(save(make(), place / name.partition("/")[0]))
            yield row(f"open {name}", "transformers", folder, lambda folder=folder: of_transformers(folder))
        model = timm.create_model("vit_small_patch16_224")
        timm.models.save_for_hf(model, place / "timm", model_config={"pretrained_cfg": model.pretrained_cfg})
        yield row("open ViT-S/16", "timm", str(place / "timm"), lambda: of_timm(place / "timm"))
        with patch.dict(os.environ, TORCH_HOME=str(place)):
            weights = models.ResNet18_Weights.DEFAULT
            file = place / "hub" / "checkpoints" / Path(weights.url).name
            file.parent.mkdir(parents=True)
            torch.save(models.resnet18().state_dict(), file)
            yield row("open ResNet18", "torchvision", "resnet18", lambda: of_torchvision(weights))


def row(what: str, library: str, name: str, theirs: Callable[[], torch.nn.Module]) -> Row:
    """Compare both, after a check that they have the same weights."""
    mine, own = backbones.build(name).model.state_dict(), theirs().state_dict()
    shared = mine.keys() & own.keys()
    assert len(shared) > len(own) - 5 and all(torch.equal(mine[key], own[key]) for key in shared)
    against = f"{library}'s own model and preprocessing"
    return measured(what, against, "cheaper", 1.15, lambda: backbones.build(name), lambda: read(theirs()))


def read(model: torch.nn.Module) -> None:
    """Read every weight once, as a first forward pass does."""
    for tensor in model.state_dict().values():
        tensor.sum()


def of_transformers(folder: str) -> torch.nn.Module:
    """Load by the classes that find the model's own."""
    transformers.AutoImageProcessor.from_pretrained(folder)
    model: torch.nn.Module = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def of_timm(folder: Path) -> torch.nn.Module:
    """Load as timm's documentation does."""
    model: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return model


def of_torchvision(weights: models.WeightsEnum) -> torch.nn.Module:
    """Load as torchvision's documentation does."""
    weights.transforms()
    model: torch.nn.Module = models.resnet18(weights=weights).eval()
    return model
