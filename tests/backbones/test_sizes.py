"""Another image size than the native one: resampled once, and the same in training, export and the library."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.backbones.families import CONFIGS, DUALS, save
from transferkit import backbones
from transferkit.extractor import Extractor
from transferkit.extractor.pretrained import read_json

# Families that resample on each forward pass when asked, and those that transformers gives no other size.
ASKED = ["vit", "deit", "beit", "data2vec_vision", "ijepa", "vit_msn", "clip_vision", "siglip_vision"]
CLASSIFIERS = [("vit", "cls"), ("deit", "cls"), ("beit", "pooler"), ("vit_msn", "cls"), ("ijepa", "mean")]


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", ASKED)
def test_resampled_once_equals_the_librarys_on_each_pass(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    plain = transformers.AutoModel.from_pretrained(tmp_path).eval()
    hidden = plain(pixel_values=images(48), interpolate_pos_encoding=True).last_hidden_state
    backbone: Any = backbones.build(str(tmp_path), preprocessing={"image_size": 48})
    assert backbone.model.config.image_size == 48
    torch.testing.assert_close(backbone.run(images(48)).last_hidden_state, hidden, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["aimv2_vision", "mlcd", "dinov2", "dinov3_vit", "pixio", "radio", "sapiens2", "swin", "clip"]
)
def test_half_as_large_again(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    config: Any = {**CONFIGS, **DUALS}[family]
    native = getattr(config, "vision_config", config).image_size
    native = native if isinstance(native, int) else native[0]
    size = native * 3 // 2
    extractor = Extractor.from_pretrained(tmp_path, preprocessing={"image_size": size})
    pixels = images(size)
    extractor.save_pretrained(tmp_path / "export")
    again = Extractor.from_pretrained(tmp_path / "export")
    assert torch.equal(again.backbone(pixels), extractor.backbone(pixels))
    back = Extractor.from_pretrained(tmp_path / "export", preprocessing={"image_size": native})
    assert back.backbone(images(native)).shape == (2, extractor.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize(("family", "pooling"), CLASSIFIERS)
def test_the_export_is_a_classifier_of_the_new_size(family: str, pooling: str, tmp_path: Path) -> None:
    save(family, tmp_path / "native")
    backbone = backbones.build(str(tmp_path / "native"), pooling=pooling, preprocessing={"image_size": 48})
    extractor = Extractor(backbone, head=nn.Linear(backbone.embed_dim, 3), class_names=["a", "b", "c"])
    extractor.save_pretrained(tmp_path / "export")
    assert read_json(tmp_path / "export" / "transferkit.json")["layout"] == "classifier"
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "export").eval()
    assert extractor.head is not None
    logits = extractor.head(extractor.backbone(images(48)))
    torch.testing.assert_close(theirs(pixel_values=images(48)).logits, logits, atol=1e-5, rtol=1e-5)
