"""Regime lora: what learns, what a checkpoint holds, and that an export needs neither adapters nor peft."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, Dinov2Config, Dinov2Model

from tests.tiny import RESNET, VIT, Cut
from transferkit.backbones import build
from transferkit.backbones.adapters import Adapters, add_adapters, merge_adapters
from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.core import head_logits
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.lora import read_options
from transferkit.training.module import TransferModule
from transferkit.training.regimes import count_parameters, freeze, frozen_keys
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1", "2"], "n_per_class": 6, "batch_size": 6, "num_workers": 0}
QUICK = {"regime": "lora", "lr_backbone": 3e-2}
SHAPES = [{}, {"dora": True}, {"rank": 2, "alpha": 3.5, "rslora": True}]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An export of a small ViT: weights that can be opened again."""
    seed_everything(1)
    Extractor.from_pretrained(VIT["backbone"], "none", None, None, VIT["architecture"]).save_pretrained(
        tmp_path / "vit"
    )
    return tmp_path / "vit"


def fit(
    run: Path, base: Path, resume: Path | None = None, precision: Any = "32-true", **options: Any
) -> TransferModule:
    seed_everything(0)
    module = TransferModule(**{"backbone": str(base), **QUICK, **options})
    callbacks = [] if resume else [Cut(run.with_suffix(".cut.ckpt"))]
    trainer = make_trainer(
        run, max_epochs=2, enable_progress_bar=False, accelerator="cpu", callbacks=callbacks, precision=precision
    )
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS), ckpt_path=resume)
    return module.eval()


def pixels(side: int = 32) -> Tensor:
    return torch.randint(256, (4, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(extractor: Extractor) -> Tensor:
    assert extractor.head is not None
    return head_logits(extractor.head, extractor(pixels()).clone(), extractor.l2_normalize)


@pytest.mark.parametrize("shape", [SHAPES[0], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[1:])])
def test_from_a_fit_to_transformers_without_peft(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    before = Extractor.from_pretrained(base).backbone.state_dict()
    module = fit(tmp_path / "run", base, lora=shape)
    with torch.no_grad():
        expected = module(pixels())
    state = module.backbone.state_dict()
    for name, value in before.items():  # nothing but the adapters moved
        owner, _, kind = name.rpartition(".")
        assert torch.equal(value, state[name] if name in state else state[f"{owner}.base_layer.{kind}"])
    best = tmp_path / "run/checkpoints/last.ckpt"
    held = torch.load(best, weights_only=True)["state_dict"]
    assert all(".lora_" in name for name in held if name.startswith("backbone."))
    assert best.stat().st_size < 12 * count_parameters(module)[1] + 100_000  # float32, and Adam's two moments of them
    opened = Extractor.from_pretrained(best)
    assert torch.allclose(logits(opened), expected, atol=1e-5)
    opened.save_pretrained(tmp_path / "export")
    monkeypatch.setitem(sys.modules, "peft", None)  # cannot be imported
    assert torch.allclose(logits(Extractor.from_pretrained(tmp_path / "export")), expected, atol=1e-5)
    library = AutoModel.from_pretrained(tmp_path / "export", add_pooling_layer=False).eval()
    images = opened.preprocessing.normalize(pixels())
    with torch.no_grad():
        tokens, ours = library(pixel_values=images).last_hidden_state, opened.backbone(images)
    assert torch.allclose(tokens[:, 0], ours, atol=1e-5)
    with torch.no_grad():
        moved = (ours - Extractor.from_pretrained(base).backbone(images)).abs().max()
    assert moved > 1e-2


@pytest.mark.parametrize("shape", [SHAPES[2], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[:2])])
def test_killed_in_the_first_epoch_and_resumed(tmp_path: Path, base: Path, shape: dict[str, Any]) -> None:
    whole = fit(tmp_path / "whole", base, lora=shape).state_dict()
    again = fit(tmp_path / "again", base, tmp_path / "whole.cut.ckpt", lora=shape).state_dict()
    assert whole.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "atol"),
    [("bf16-mixed", 1e-5), ("bf16-true", 1e-2)],  # the base is opened in float32
)
def test_lower_precision(tmp_path: Path, base: Path, precision: str, atol: float) -> None:
    module = fit(tmp_path / "run", base, precision=precision)
    opened = Extractor.from_pretrained(tmp_path / "run/checkpoints/last.ckpt")
    assert torch.allclose(logits(opened), logits(module.as_extractor()), atol=atol)


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_by_a_module_without_adapters(tmp_path: Path, base: Path) -> None:
    fitted = fit(tmp_path / "run", base)
    with torch.no_grad():
        expected = fitted(pixels())
    last = tmp_path / "run/checkpoints/last.ckpt"
    for module in (TransferModule(str(last)), fit(tmp_path / "other", base, seed=5)):
        trainer = make_trainer(tmp_path / "test", enable_progress_bar=False, accelerator="cpu", logger=False)
        data = ImageDataModule("digits", **DIGITS)
        trainer.validate(module, datamodule=data, ckpt_path=last, verbose=False)
        with torch.no_grad():
            assert torch.allclose(module.eval()(pixels()), expected, atol=1e-5)


def test_a_share_of_the_parameters_learns() -> None:
    """LoRA has rank * (inputs + outputs) of each linear layer; there are 4 + 2 in each of 2 blocks."""
    seed_everything(0)
    backbone = build(VIT["backbone"], "none", architecture=VIT["architecture"])
    names = set(backbone.state_dict())
    add_adapters(backbone, Adapters(rank=3, alpha=6), seed=0)
    freeze(backbone, len(backbone.stages))
    assert count_parameters(backbone.model)[1] == 2 * 3 * (4 * (32 + 32) + 2 * (32 + 64))
    assert {name.replace(".base_layer.", ".") for name in frozen_keys(backbone, len(backbone.stages))} == names


@pytest.mark.slow
def test_of_dinov2_two_percent_learn() -> None:
    model = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14))
    backbone = TransformersBackbone("dinov2-small", model, Preprocessing.vit().replace(image_size=28))
    total, _ = count_parameters(backbone.model)
    add_adapters(backbone, read_options(None), seed=0)
    freeze(backbone, len(backbone.stages))
    assert 0 < count_parameters(backbone.model)[1] <= 0.02 * total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny", "maxvit_t"])
def test_torchvision(name: str) -> None:
    """Layers that a function reads the weights of learn nothing; the others are merged as everywhere."""
    seed_everything(0)
    backbone = build(name, "none")
    keys = list(backbone.state_dict())
    add_adapters(backbone, Adapters(rank=2, alpha=4), seed=0)
    freeze(backbone, len(backbone.stages))
    learning = {key: value for key, value in backbone.named_parameters() if value.requires_grad}
    assert learning and all(".lora_" in key for key in learning)
    for value in learning.values():
        torch.nn.init.normal_(value, std=0.02)
    images = torch.randn(2, 3, *backbone.preprocessing.image_size)
    with torch.no_grad():
        expected = backbone.eval()(images)
        merge_adapters(backbone)
        assert torch.allclose(backbone(images), expected, atol=1e-4)
    assert sorted(backbone.state_dict()) == sorted(keys)


def test_what_cannot_be_adapted(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_everything(0)
    Extractor.from_pretrained("resnet18", "none", None, RESNET["preprocessing"]).save_pretrained(tmp_path / "resnet")
    with pytest.raises(UserError, match=r"resnet18 has no linear layers.*give `regime` partial, full or lp-ft"):
        TransferModule(str(tmp_path / "resnet"), regime="lora")
    with pytest.raises(UserError, match=r"adapts trained weights.*`regime=.scratch.`"):
        TransferModule(**VIT, regime="lora")
    for wrong, message in (
        ({"rang": 4}, "no field 'rang'; it has rank, alpha, dora, rslora"),
        ({"rank": 0}, "rank 0; give a number above 0"),
        ({"rank": 2.5}, "rank 2.5"),
        ({"alpha": -1.0}, "alpha -1.0"),
        ({"dora": "yes"}, "dora 'yes'; give true or false"),
    ):
        with pytest.raises(UserError, match=message):
            TransferModule(str(base), regime="lora", lora=wrong)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft, which is not installed; pip install 'transferkit\[peft\]'"):
        TransferModule(str(base), regime="lora")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"rank": 10**9}, {"rank": "4"}, {"base": {}}, {"base": None}, {"base_sha256": 1}, {"dora": None}]
)
def test_a_broken_record(tmp_path: Path, base: Path, change: dict[str, Any]) -> None:
    fit(tmp_path / "run", base, lora={"dora": True})
    last = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["transferkit"]["adapters"] |= change
    torch.save(content, last)
    with pytest.raises(UserError):
        Extractor.from_pretrained(last)


@pytest.mark.slow
def test_adapters_of_other_weights(tmp_path: Path, base: Path) -> None:
    fit(tmp_path / "run", base)
    last = tmp_path / "run/checkpoints/last.ckpt"
    seed_everything(2)
    other = Extractor.from_pretrained(VIT["backbone"], "none", None, None, VIT["architecture"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"adapters of other weights.*give the same `backbone`"):
        fit(tmp_path / "again", tmp_path / "other", last)
    with pytest.raises(UserError, match=r"or of another shape.*`lora`"):
        fit(tmp_path / "again", base, last, lora={"rank": 2})
    other.save_pretrained(base, overwrite=True)
    with pytest.raises(UserError, match=r"holds adapters of .*vit, whose weights have changed"):
        Extractor.from_pretrained(last)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"holds adapters of .*vit, which cannot be opened: "):
        Extractor.from_pretrained(last)
