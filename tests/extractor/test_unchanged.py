"""What is given to transferkit stays as it is, and what is done twice gives the same twice."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.backbones.families import CONFIGS, DUALS, save
from transferkit import Extractor, backbones
from transferkit.backbones.adapters import Adapters, add_adapters, merge_adapters
from transferkit.backbones.base import Backbone
from transferkit.images.preprocessing import Preprocessing

QUICK = ("levit",)
OTHERS = ("test_vit", "test_efficientnet", "resnet18", "mobilenet_v3_small")
NAMES = [
    *(pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*CONFIGS, *DUALS)),
    *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
]


def open_twice(name: str, folder: Path) -> tuple[Backbone, Backbone]:
    """One backbone, opened a second time."""
    if name in OTHERS:
        torch.manual_seed(0)
        one = backbones.build(name, "none")
        torch.manual_seed(0)
        return one, backbones.build(name, "none")
    save(name, folder)
    return backbones.build(str(folder)), backbones.build(str(folder))


def same(one: Backbone, other: Backbone, pixels: Tensor) -> bool:
    states = one.state_dict(), other.state_dict()
    equal = [torch.equal(value, states[1][key]) for key, value in states[0].items()]
    described = states[0].keys() == states[1].keys() and one.spec() == other.spec()
    return all(equal) and described and torch.equal(one(pixels), other(pixels))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_opening_exporting_and_rebuilding_twice(name: str, tmp_path: Path) -> None:
    """The same description, the same bits, the same files; nothing is left behind in the backbone."""
    backbone, again = open_twice(name, tmp_path / "saved")
    pixels = torch.randn(2, 3, *backbone.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
    spec, numbers = copy.deepcopy(backbone.spec()), backbone(pixels)
    assert same(backbone, again, pixels)
    extractor = Extractor(backbone, head=nn.Linear(backbone.embed_dim, 2), class_names=["a", "b"])
    for place in ("one", "two"):
        extractor.save_pretrained(tmp_path / place)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / place).iterdir()} for place in ("one", "two")]
    assert contents[0] and contents[0] == contents[1]
    assert backbone.spec() == spec and torch.equal(backbone(pixels), numbers)
    exports = [Extractor.from_pretrained(tmp_path / place).backbone for place in ("one", "two")]
    assert same(*exports, pixels)
    aligned = copy.deepcopy(backbone)  # tensors of a mapped file are not: the last bit of a convolution depends on it
    rebuilt = backbones.rebuild(spec)
    twice = backbones.rebuild(rebuilt.spec())
    for other in (rebuilt, twice):
        other.load_state_dict(backbone.state_dict())
        assert same(aligned, other, pixels)


@pytest.mark.parametrize("name", ["levit", "test_vit"])
def test_a_description_is_a_copy(name: str, tmp_path: Path) -> None:
    """Whoever changes it changes no backbone, and a backbone that changes its size changes none that was given."""
    backbone, _ = open_twice(name, tmp_path)
    spec = backbone.spec()
    expected = copy.deepcopy(spec)
    backbone.fit_to((96, 96))
    assert spec == expected
    changed = backbone.spec()
    changed["architecture"]["added"] = 1
    assert "added" not in backbone.spec()["architecture"]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("google/vit-base-patch16-224-in21k", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ("test_vit", {"embed_dim": 96, "global_pool": "avg"}),
        ("resnet18", {"num_classes": 3}),
    ],
)
def test_arguments_stay_as_they_are(name: str, architecture: dict[str, Any]) -> None:
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "interpolation": "bicubic"}
    given = copy.deepcopy((architecture, preprocessing))
    for make in (backbones.build, Extractor.from_pretrained):
        opened: Any = make(name, "none", architecture=architecture, preprocessing=preprocessing)
        assert (architecture, preprocessing) == given
        opened.spec()["architecture"].clear()
        opened.spec()["preprocessing"].clear()
        assert (architecture, preprocessing) == given and opened.spec()["architecture"]
    preprocessing["mean"][0] = 9  # type: ignore[index]
    assert opened.preprocessing.mean[0] == 0.1


def test_files_of_preprocessing_stay_as_they_are() -> None:
    theirs = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.1] * 3,
    }
    timms: dict[str, Any] = {"input_size": [3, 64, 64], "crop_pct": 0.8, "mean": [0.1] * 3}
    given = copy.deepcopy((theirs, timms))
    first, second = Preprocessing.from_hf(theirs, "clip"), Preprocessing.from_timm(timms)
    assert (theirs, timms) == given
    assert (Preprocessing.from_hf(theirs, "clip"), Preprocessing.from_timm(timms)) == (first, second)
    first.to_hf().clear()
    assert json.dumps(first.to_hf()) == json.dumps(Preprocessing.from_hf(theirs, "clip").to_hf())


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "clip", "test_vit"])
def test_adapters_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    """At first they change nothing: merged, the backbone is what it was, and so is its description."""
    backbone, again = open_twice(name, tmp_path)
    pixels = torch.randn(2, 3, *backbone.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        add_adapters(backbone, Adapters(2, 4.0), seed=0)
        merge_adapters(backbone)
    assert same(backbone, again, pixels)
    assert [*dict(backbone.named_modules())] == [*dict(again.named_modules())]


@pytest.mark.parametrize("family", ["beit", "data2vec_vision", "dinov3_vit"])
def test_what_a_library_keeps_of_a_pass_does_not_hinder_training(tmp_path: Path, family: str) -> None:
    """transformers keeps positions per process; those made in inference mode could not be trained with later."""
    save(family, tmp_path / family)
    extractor = Extractor.from_pretrained(tmp_path / family, preprocessing={"image_size": 80})  # nobody else's size
    extractor.embed([np.zeros((90, 90, 3), np.uint8)])
    again = Extractor.from_pretrained(tmp_path / family, preprocessing={"image_size": 80}).backbone
    again.requires_grad_()(torch.rand(2, 3, 80, 80)).sum().backward()
