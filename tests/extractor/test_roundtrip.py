"""Every architecture that is offered, at a tiny size: trained state, checkpoint, export, weights file, card's code."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from tests.backbones.families import CONFIGS
from tests.extractor.examples import transformer, with_head
from tests.extractor.test_checkpoint_reader import checkpoint
from transferkit import backbones
from transferkit.extractor import Extractor

# Those that take one size of image alone, or need more than a few pixels: name -> arguments of the builder, and size.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_b_16": {"image_size": 32},
    "vit_b_32": {"image_size": 64},
    "vit_l_16": {"image_size": 32},
    "vit_l_32": {"image_size": 64},
}
SIZES = {"maxvit_t": 224, "inception_v3": 96}
HUGE = {"vit_h_14", "regnet_y_128gf"}  # 2.5 GB each, and built as vit_l_16 and regnet_y_32gf
TORCHVISION = sorted(set(models.list_models(module=models)) - HUGE)
QUICK = {"googlenet", "mnasnet0_5", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"}
POOLINGS = {"convnext": "pooler", "siglip_vision": "pooler", "aimv2_vision": "pooler"}


def slow_but(names: Iterable[str], quick: set[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def torchvision_extractor(name: str) -> Extractor:
    """Random weights, and statistics of BatchNorm as after some training."""
    architecture = ARCHITECTURES.get(name)
    size = None if architecture else {"image_size": SIZES.get(name, 64)}
    backbone = backbones.build(name, "none", architecture=architecture, preprocessing=size)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return with_head(backbone, backbone.preprocessing)


def run_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What all code blocks of the card leave; each loads the weights strictly."""
    found: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    with monkeypatch.context() as inside:
        inside.chdir(folder)
        for block in blocks:
            names: dict[str, Any] = {}
            exec(block, names)
            found |= {key: names[key] for key in ("embedding", "logits") if key in names}
    return found


def check(extractor: Extractor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint, export and the card's code give the embedding of the extractor itself, and the same logits."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    coarse = Image.fromarray(pixels).resize((25, 20), Image.Resampling.BOX).resize((100, 80), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(coarse)).permute(2, 0, 1)
    assert extractor.head is not None
    oracle = {"embedding": extractor.embed([image])}
    oracle["logits"] = extractor.head(oracle["embedding"]).detach()
    assert oracle["embedding"].isfinite().all() and oracle["embedding"].std() > 0
    content = checkpoint(extractor)
    content["state_dict"] = dict(content["state_dict"])  # without the versions of its modules
    torch.save(content, folder / "best.ckpt")
    opened = Extractor.from_pretrained(folder / "best.ckpt")
    (folder / "best.ckpt").unlink()
    opened.save_pretrained(folder / "export")
    again = Extractor.from_pretrained(folder / "export")
    for other in (opened, again):
        assert other.head is not None
        embedding = other.embed([image])
        torch.testing.assert_close(embedding, oracle["embedding"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.head(embedding).detach(), oracle["logits"], atol=1e-5, rtol=1e-5)
        assert other.weights_sha256() == extractor.weights_sha256()
        assert other.backbone.state_dict()._metadata == extractor.backbone.state_dict()._metadata
        assert other.spec() == extractor.spec()
    coarse.save(folder / "export" / "image.jpg", "PNG")
    found = run_the_card(folder / "export", monkeypatch)
    assert found.keys() == oracle.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, oracle[name], atol=1e-4, rtol=1e-4, msg=f"the card's {name}")


@pytest.mark.parametrize("name", slow_but(TORCHVISION, QUICK))
def test_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(torchvision_extractor(name), tmp_path, monkeypatch)


@pytest.mark.parametrize("family", slow_but(CONFIGS, {"clip_vision", "dinov2", "convnext"}))
def test_transformers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(transformer(family, POOLINGS.get(family)), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", slow_but(TORCHVISION, QUICK))
def test_a_weights_file_of_torchvisions_own_state(name: str, tmp_path: Path) -> None:
    """A plain dict, with the classifier and the auxiliary heads of the library in it."""
    if name in ARCHITECTURES:
        pytest.skip("its weights are for one size of image")
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        shapes = models.get_model(name, weights=None, **options).state_dict()
    zeros = {f"module.{key}": torch.zeros((), dtype=like.dtype).expand(like.shape) for key, like in shapes.items()}
    torch.save(zeros, tmp_path / "w.pt")  # a small file
    backbone = backbones.build(name, str(tmp_path / "w.pt"))
    assert all(not parameter.any() for parameter in backbone.parameters())
