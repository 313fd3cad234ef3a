"""timm's ``pretrained_cfg`` against its evaluation transform; Hugging Face's files are in ``test_preprocessing.py``."""

from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from tests.images.test_preprocessing import PHOTOS, tensor
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def timms_transform(config: dict[str, Any], image: Image.Image) -> Tensor:
    """timm's own evaluation transform."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    pixels: Tensor = transform(image)
    return pixels


@pytest.mark.parametrize(
    "config",
    [
        # of timm/tf_efficientnet_lite0.in1k, vit_base_patch16_224.augreg_in21k, resnet50.a1_in1k, one that squashes
        {
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3},
        {
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "pool_size": [7, 7],
            "classifier": "fc",
        },
        {
            "input_size": [3, 96, 128],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.3, 0.2, 0.1],
        },
        {"input_size": [3, 96, 128], "interpolation": "bilinear", "crop_pct": 0.9},
        {"input_size": [3, 96, 128], "interpolation": "bilinear", "crop_mode": "border", "mean": [0.5] * 3},
        {"input_size": [3, 128, 128], "crop_mode": "border", "crop_pct": 1.0},
    ],
)
def test_timms_pretrained_cfg(config: dict[str, Any]) -> None:
    scheme = Preprocessing.from_timm(config)
    assert Preprocessing.from_hf(scheme.to_hf()) == scheme == Preprocessing.from_dict(scheme.to_dict())
    for pixels in PHOTOS:
        ours, theirs = scheme(tensor(pixels)), timms_transform(config, Image.fromarray(pixels))
        levels = (ours - theirs).abs() * 255 * torch.tensor(scheme.std)[:, None, None]
        assert levels.max() < 2.001 and levels.mean() < 0.5, "Pillow rounds between the axes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "random"}, "pretrained_cfg: interpolation 'random' cannot be honored"),
        ({"crop_mode": "corner"}, "pretrained_cfg: crop_mode 'corner'"),
        ({"input_size": [1, 224, 224]}, r"pretrained_cfg: input_size \[1, 224, 224\]"),
        ({"input_size": 224}, "pretrained_cfg: input_size 224"),
        ({"crop_pct": 0}, "pretrained_cfg: crop_pct 0"),
        ({"mean": "grey"}, "pretrained_cfg: mean 'grey'"),
    ],
)
def test_a_pretrained_cfg_that_cannot_be_honored(change: dict[str, Any], message: str) -> None:
    assert Preprocessing.from_timm({}).resize == 256
    with pytest.raises(UserError, match=message):
        Preprocessing.from_timm(change)
