"""Names as people type them open, or get one line with the name that opens."""

import os
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

from tests.backbones.families import make, save
from transferkit import backbones
from transferkit.backbones.spelling import near_names, plain_name
from transferkit.cli.open_extractor import read_extractor
from transferkit.errors import UserError


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("https://huggingface.co/facebook/dinov2-small", "facebook/dinov2-small"),
        ("https://huggingface.co/facebook/dinov2-small/", "facebook/dinov2-small"),
        ("http://www.huggingface.co/facebook/dinov2-small?library=timm#usage", "facebook/dinov2-small"),
        ("huggingface.co/facebook/dinov2-small/tree/main", "facebook/dinov2-small"),
        ("https://hf.co/facebook/dinov2-small/tree/v1.0", "facebook/dinov2-small@v1.0"),
        ("https://huggingface.co/owner/vit/blob/1a2b/model.safetensors", "owner/vit@1a2b"),
        ("https://huggingface.co/owner/vit/resolve/main/model.safetensors?download=true", "owner/vit"),
        ("hf://owner/vit", "owner/vit"),
        ("https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("https://huggingface.co/datasets/owner/photos", "https://huggingface.co/datasets/owner/photos"),
        ("https://example.com/vit", "https://example.com/vit"),
        (" resnet18\n", "resnet18"),
        ("owner/vit/", "owner/vit"),
        ("/", "/"),
        ("~/vit", f"{Path.home()}/vit"),
        ("C:\\models\\vit", "C:\\models\\vit"),
    ],
)
def test_plain_name(typed: str, plain: str) -> None:
    assert plain_name(typed) == plain


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("dinov2-small", "facebook/dinov2-small"),
        ("facebok/dinov2-smal", "facebook/dinov2-small"),
        ("OpenAI/CLIP-ViT-Base-Patch32", "openai/clip-vit-base-patch32"),
        ("ResNet50", "resnet50"),
        ("resnet-50", "microsoft/resnet-50"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("convnext-tiny", "convnext_tiny"),
        ("dinov2_vits14", "facebook/dinov2-small"),
        ("dinov2_vitb14_reg", "facebook/dinov2-with-registers-base"),
        ("dinov3_vits16", "facebook/dinov3-vits16-pretrain-lvd1689m"),
        ("dino_vits16", "facebook/dino-vits16"),
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("ViT-L-14", "openai/clip-vit-large-patch14"),
        ("google/siglip2", "google/siglip2-base-patch16-224"),
        ("mobileclip_s2", "fastvit_mci2.apple_mclip"),
    ],
)
def test_near_names(typed: str, first: str) -> None:
    assert near_names(typed)[0] == first


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "the name of the backbone is empty; give one, such as resnet18"),
        ("ResNet50", r"unknown backbone 'ResNet50' .*; nearest: resnet50"),
        ("ViT-B/32", r"unknown backbone 'ViT-B/32' .*; nearest: openai/clip-vit-base-patch32"),
        ("resnet50.IMAGENET1K_V2", 'give `backbone="resnet50"` and `weights="IMAGENET1K_V2"`'),
        ("C:/models/vit", r"unknown backbone 'C:/models/vit' \(no such directory\); check the path"),
        (".\\vit", "no such directory"),
        ("~/no/such/vit", "no such directory"),
        ("https://example.com/vit.pth", "is not an address of a model on the hub; download it"),
        ("timm:RESNET18", "timm has no model 'RESNET18'; nearest: resnet18"),
        ("facebook/dinov2-smal", r"not in the local cache, .*; check its name \(nearest: facebook/dinov2-small"),
        (
            "facebook/dinov2-small",
            "not in the local cache, and huggingface.co cannot be reached; give a local directory",
        ),
    ],
)
def test_names_that_do_not_open(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_extractor(typed)
    assert "\n" not in str(caught.value)


def test_an_empty_name_is_not_the_run_that_it_is_given_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the name of the backbone is empty"):
        read_extractor("")


@pytest.mark.usefixtures("filled_cache")
def test_an_address_opens() -> None:
    expected = read_extractor("someone/tiny-vit").spec()
    for typed in ("https://huggingface.co/someone/tiny-vit/tree/main", "someone/tiny-vit/"):
        assert read_extractor(typed).spec() == expected
        assert backbones.build(typed).spec() == expected
    assert backbones.build("hf.co/someone/tiny-vit", "none", revision="main").name == "someone/tiny-vit@main"
    with pytest.raises(UserError, match="someone/tiny-vit is not a repository of timm's; leave out hf-hub:"):
        backbones.build("hf-hub:someone/tiny-vit")


def test_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save("vit", tmp_path / "vit")
    torch.save(make("vit").state_dict(), tmp_path / "weights.pt")
    assert read_extractor("~/vit").name == str(tmp_path / "vit")
    assert read_extractor("~/vit/", "~/weights.pt").name == str(tmp_path / "vit")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("x.onnx", "is a model in ONNX alone; give the model that it was exported from"),
        ("x.gguf", "is a model in GGUF alone"),
        ("x.pt2", "is a program of torch.export"),
        ("x.h5", "is a model of Keras"),
        ("config.json", "is a file of a model; give its folder, "),
        ("x.pth", r"is a file of weights alone; .* `weights=.*x.pth"),
        ("x.png", r"is a file, but not a checkpoint \(.ckpt\)"),
    ],
)
def test_files(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{file} {message}") as caught:
        read_extractor(str(tmp_path / file))
    assert "\n" not in str(caught.value)


def test_a_folder_of_checkpoints_names_the_newest(tmp_path: Path) -> None:
    for number, name in enumerate(("checkpoint-500", "checkpoint-90")):
        save("vit", tmp_path / name)
        os.utime(tmp_path / name / "config.json", (number, number))
    torch.save({"state": {}}, tmp_path / "checkpoint-500" / "optimizer.pt")
    with pytest.raises(UserError, match=r"has no config\.json\); give one that has, such as .*checkpoint-90$"):
        backbones.build(str(tmp_path))
    assert backbones.build(str(tmp_path / "checkpoint-500")).embed_dim == 32


def test_another_librarys_names_of_the_tensors(tmp_path: Path) -> None:
    save("vit", tmp_path / "vit")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "dino.pth")
    with pytest.raises(UserError, match=r"dino\.pth has the names of timm's networks, not of transformers' vit"):
        backbones.build(str(tmp_path / "vit"), str(tmp_path / "dino.pth"))
    assert backbones.build("test_vit", str(tmp_path / "dino.pth")).embed_dim == 64


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "timm/test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k"])
def test_weights_of_timm_in_the_cache_open_without_asking_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    plain = timm.create_model("test_vit")
    timm.models.save_for_hf(plain, snapshot)
    (snapshot / "config.json").unlink()  # timm's own loading by name does not fetch it
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asks the hub"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: pytest.fail("asks the hub"))
    backbone = backbones.build(name)
    assert torch.equal(backbone.model.state_dict()["pos_embed"], plain.state_dict()["pos_embed"])
    assert backbones.build(name, "none").embed_dim == 64
