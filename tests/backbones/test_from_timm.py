"""Backbones from timm against timm's own forward pass, from names, directories and files."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transferkit import backbones
from transferkit.backbones.timm_stages import featured, find_stages
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.training.regimes import first_trainable, freeze

VIT, CNN = "test_vit", "test_efficientnet"  # timm's own small models, of 160 x 160 pixels


def images(size: int = 160) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def save(name: str, folder: Path, prefix: str = "", **cfg: Any) -> nn.Module:
    """A model as timm saves it for the hub; random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name).eval()
    if prefix:  # as transformers' TimmWrapper writes it
        folder.mkdir()
        config = {
            "architecture": name,
            "num_classes": 1000,
            "pretrained_cfg": model.pretrained_cfg,
            "model_type": "timm_wrapper",
        }
        (folder / "config.json").write_text(json.dumps(config))
        save_file({f"{prefix}{key}": value for key, value in model.state_dict().items()}, folder / "model.safetensors")
    else:
        timm.models.save_for_hf(model, folder, model_config={"pretrained_cfg": {**model.pretrained_cfg, **cfg}})
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", [VIT, CNN])
def test_embeddings_equal_timm(name: str, tmp_path: Path) -> None:
    plain: Any = save(name, tmp_path / "saved")
    features = plain.forward_features(images())
    pooled = plain.forward_head(features, pre_logits=True)
    backbone = backbones.build(str(tmp_path / "saved"))
    assert (backbone.pooling, backbone.embed_dim) == ("pooler", plain.num_features)
    torch.testing.assert_close(backbone(images()), pooled, atol=1e-5, rtol=1e-5)
    patches = features[:, 1:] if name == VIT else features
    torch.testing.assert_close(backbone.forward_features(images()), patches, atol=1e-5, rtol=1e-5)
    oracle = {"logits": plain(images()), "mean": patches.mean(1) if name == VIT else patches.mean((2, 3))}
    if name == VIT:
        oracle |= {"cls": features[:, 0], "cls+mean": torch.cat((features[:, 0], patches.mean(1)), 1)}
    assert set(backbone.poolings) == {"pooler", *oracle}
    for pooling, expected in oracle.items():
        given = backbones.build(str(tmp_path / "saved"), pooling=pooling)
        torch.testing.assert_close(given(images()), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["timm_model.", "module.", "model._orig_mod."])
def test_a_repository_of_timms_in_transformers_layout(prefix: str, tmp_path: Path) -> None:
    plain = save(VIT, tmp_path / "saved", prefix)
    backbone = backbones.build(str(tmp_path / "saved"), pooling="logits")
    torch.testing.assert_close(backbone(images()), plain(images()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_of_a_file_and_a_classifier_of_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain: Any = timm.create_model(CNN, num_classes=7).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in plain.state_dict().items()}}, tmp_path / "w.pth"
    )
    with caplog.at_level(logging.WARNING):
        backbone = backbones.build(CNN, str(tmp_path / "w.pth"))
    assert "dropped the 7-class layer classifier" in caplog.text
    pooled = plain.forward_head(plain.forward_features(images()), pre_logits=True)
    torch.testing.assert_close(backbone(images()), pooled, atol=1e-5, rtol=1e-5)
    state = {key: value for key, value in plain.state_dict().items() if key != "bn1.weight"}
    torch.save(state | {"odd.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"lacks tensors bn1\.weight|unexpected tensors odd\.weight"):
        backbones.build(CNN, str(tmp_path / "odd.pth"))


@torch.no_grad()
def test_a_directory_says_its_size_and_another_one_is_resampled(tmp_path: Path) -> None:
    plain = save(VIT, tmp_path / "saved")
    backbone = backbones.build(str(tmp_path / "saved"), preprocessing={"image_size": 240})
    larger: Any = timm.create_model(VIT, img_size=240)
    larger.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(plain.state_dict(), larger))
    larger.eval().reset_classifier(0)
    torch.testing.assert_close(backbone(images(240)), larger(images(240)), atol=1e-5, rtol=1e-5)
    Extractor(backbone).save_pretrained(tmp_path / "export")
    again = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    torch.testing.assert_close(again(images(240)), backbone(images(240)), atol=1e-5, rtol=1e-5)
    changed = Extractor.from_pretrained(tmp_path / "export", preprocessing={"image_size": 160})
    assert changed.backbone(images(160)).shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (VIT, ["stem", *(f"blocks.{index}" for index in range(6))]),
        (CNN, ["stem", *(f"blocks.{index}" for index in range(5))]),
        ("test_resnet", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("convnext_atto", ["stem", "stages.0", "stages.1", "stages.2", "stages.3"]),
        ("swin_tiny_patch4_window7_224", ["stem", "layers.0", "layers.1", "layers.2", "layers.3"]),
        ("rdnet_tiny", ["stem", "dense_stages.0", "dense_stages.1", "dense_stages.5", "dense_stages.6"]),  # no matcher
    ],
)
def test_stages_are_timms_own_and_partial_trains_the_last_alone(name: str, stages: list[str]) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    assert list(find_stages(model)) == stages
    if name in (VIT, CNN):
        backbone = backbones.build(name, "none")
        freeze(backbone, first_trainable(backbone, "partial", 1))
        learning = {key for key, parameter in backbone.model.named_parameters() if parameter.requires_grad}
        assert learning and all(backbone.stage_of(key) == len(stages) - 1 for key in learning)
        assert {key.split(".")[0] for key in learning} == (
            {"blocks", "norm"} if name == VIT else {"blocks", "conv_head", "bn2"}
        )


def test_a_model_without_a_matcher_is_cut_where_its_features_are() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    model.feature_info = [{"module": "1"}, {"module": "3"}]  # type: ignore[assignment]
    assert [[name.split(".")[0] for name in group[::2]] for group in featured(model)] == [["0"], ["1", "2"], ["3"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18.nope", "timm has no weights 'resnet18.nope': .*; it has resnet18.a1_in1k"),
        ("test_vit.r160_in1k", "test_vit.r160_in1k's weights: not in the local cache"),
        ("hf-hub:someone/nothing", "someone/nothing .configuration.: not in the local cache"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k's weights: not in the local cache"),
        ("test_vit2x", "unknown backbone 'test_vit2x' .*; nearest: test_vit"),
    ],
)
def test_names_that_do_not_open_get_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        backbones.build(name)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_encoders_of_language_models_are_refused_in_one_line() -> None:
    names = timm.list_models("*_vit_*m_enc")
    assert names
    for name in names[:1]:
        with pytest.raises(
            UserError, match="makes no embedding of the image; the nearest that opens is vit_"
        ) as caught:
            backbones.build(name, "none")
        assert "\n" not in str(caught.value)


def test_a_name_that_torchvision_has_as_well() -> None:
    ours, theirs = backbones.build("timm:resnet18", "none"), backbones.build("resnet18", "none")
    assert (ours.spec()["source"], theirs.spec()["source"]) == ("timm", "torchvision")


def test_architecture_changes() -> None:
    assert backbones.build(VIT, "none", architecture={"embed_dim": 96}).embed_dim == 96
    with pytest.raises(UserError, match="cannot be built with"):
        backbones.build(VIT, "none", architecture={"width": 3})
    with pytest.raises(UserError, match='need `weights="none"`'):
        backbones.build(VIT, architecture={"embed_dim": 96})
