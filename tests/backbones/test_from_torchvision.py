"""Backbones from torchvision against plain torchvision code with the same weights."""

import json
import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from transferkit import backbones
from transferkit.backbones import from_torchvision
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing

LAST = {  # what enters these layers is the embedding
    "alexnet": "classifier.6",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "shufflenet_v2_x0_5": "fc",
    "swin_t": "head",
    "vit_b_32": "heads.head",
}
WIDTHS = {"alexnet": 4096, "densenet121": 1024, "resnet50": 2048, "swin_t": 768, "vgg16": 4096, "vit_h_14": 1280}
WIDTHS |= {"efficientnet_b0": 1280, "googlenet": 1024, "inception_v3": 2048, "squeezenet1_1": 512}
CLASSIFIERS = set(from_torchvision.names()) - {"regnet_y_128gf"}  # 2.6 GB, and built as regnet_y_32gf
LIGHT = {"efficientnet_b0", "googlenet", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"}
LIGHT |= {"alexnet", "vit_b_32"}


def light_first(names: Iterable[str], light: Iterable[str]) -> list[Any]:
    """The names as parameters, all but the light ones marked slow."""
    return [pytest.param(name, marks=() if name in light else pytest.mark.slow) for name in names]


def images(count: int = 2, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet18() -> models.ResNet:
    """torchvision's ResNet18 with random weights and BatchNorm statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = models.resnet18()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def weights(resnet18: models.ResNet, tmp_path: Path) -> str:
    path = tmp_path / "resnet18.safetensors"
    save_file(resnet18.state_dict(), path)
    return str(path)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torchvision keeps downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def torchvision_maps(model: models.ResNet, pixels: Tensor) -> dict[str, Tensor]:
    """Every stage of a ResNet, written out."""
    maps = {"stem": model.maxpool(model.relu(model.bn1(model.conv1(pixels))))}
    for name, before in (("layer1", "stem"), ("layer2", "layer1"), ("layer3", "layer2"), ("layer4", "layer3")):
        maps[name] = model.get_submodule(name)(maps[before])
    return maps


@torch.no_grad()
def test_resnet18_equals_plain_torchvision(resnet18: models.ResNet, weights: str) -> None:
    maps = torchvision_maps(resnet18, images())
    backbone = backbones.build("resnet18", weights)
    torch.testing.assert_close(backbone(images()), maps["layer4"].mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.forward_features(images()), maps["layer4"], atol=1e-5, rtol=0)
    assert (backbone.embed_dim, backbone.poolings) == (512, ("avg", "logits"))
    logits = backbones.build("resnet18", weights, "logits")
    torch.testing.assert_close(logits(images()), resnet18(images()), atol=1e-5, rtol=0)
    assert logits.embed_dim == 1000


@torch.no_grad()
def test_the_stages_of_resnet18(resnet18: models.ResNet, weights: str) -> None:
    backbone = backbones.build("resnet18", weights)
    maps = torchvision_maps(resnet18, images())
    assert list(backbone.stages) == list(maps)
    for stage, oracle in maps.items():
        torch.testing.assert_close(backbone.forward_stage(images(), stage), oracle, atol=1e-5, rtol=0)
    assert [backbone.stage_of(name) for name in ("bn1.running_mean", "layer1.0.conv1.weight")] == [0, 1]
    with pytest.raises(UserError, match="resnet18 has no stage 'block 1'; its stages: stem, layer1, layer2"):
        backbone.forward_stage(images(), "block 1")


@torch.no_grad()
@pytest.mark.parametrize("name", light_first(LAST, {"densenet121", "mobilenet_v3_small", "swin_t"}))
def test_embeddings_are_what_enters_the_last_layer(name: str) -> None:
    backbone = backbones.build(name, "none")
    logits = backbones.build(name, "none", "logits")
    logits.model.load_state_dict(backbone.model.state_dict(), strict=False)
    kept: list[Tensor] = []
    last = logits.model.get_submodule(LAST[name])
    last.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    pixels = images(1, 224 if name == "vit_b_32" else 64)
    scores = logits(pixels)
    torch.testing.assert_close(backbone(pixels), kept[0], atol=1e-5, rtol=0)
    assert scores.shape == (1, 1000)
    features = backbone.forward_features(pixels)
    if name in ("densenet121", "efficientnet_b0", "mnasnet0_5", "regnet_y_400mf", "shufflenet_v2_x0_5", "swin_t"):
        torch.testing.assert_close(features.mean((2, 3)), kept[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", light_first(sorted(CLASSIFIERS), LIGHT))
def test_every_classification_model_has_stages_and_a_width(name: str) -> None:
    """On the meta device: shapes without arithmetic; a RegNet computes its widths with tensors."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"), torch.no_grad():
        backbone = backbones.build(name, "none")
        pixels = torch.zeros(2, 3, *backbone.preprocessing.image_size)
        chosen = [*list(backbone.stages)[:: len(backbone.stages) // 3], list(backbone.stages)[-1]]
        outputs = [backbone.forward_stage(pixels, stage) for stage in chosen]
    assert backbone.embed_dim == WIDTHS.get(name, backbone.embed_dim)
    assert 300 < backbone.embed_dim < 8000
    assert {(output.ndim, len(output)) for output in outputs} <= {(3, 2), (4, 2)}
    if name == "vit_b_32":
        assert outputs[-1].shape == (2, 7 * 7, 768), "patches alone"
        assert outputs[0].shape == (2, 7 * 7 + 1, 768), "all tokens"
    sides = [output.shape[-1] for output in outputs if output.ndim == 4]
    assert sides == sorted(sides, reverse=True), "maps shrink from stage to stage, so these are (B, C, h, w)"
    assert 4 < len(backbone.stages) < 50
    assert next(iter(backbone.stages)) == "stem"
    owners = {
        key: [
            index
            for index, parts in enumerate(backbone.stages.values())
            if any(key.startswith(f"{part}.") for part in parts)
        ]
        for key, _ in backbone.model.named_parameters()
    }
    alone = {"class_token", "encoder.pos_embedding"}
    assert {key for key, stages in owners.items() if len(stages) != 1} <= alone
    assert {stage for stages in owners.values() for stage in stages} == set(range(len(backbone.stages)))
    classifier = [key for key in owners if key.startswith("classifier.")]
    assert {backbone.stage_of(key) for key in classifier} <= {len(backbone.stages) - 1}


def test_vgg_keeps_its_first_classifier_layers_in_the_last_stage() -> None:
    with torch.device("meta"):
        backbone = backbones.build("vgg16", "none")
    kept = {key for key in backbone.model.state_dict() if key.startswith("classifier.")}
    assert kept == {f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")}
    assert len(backbone.stages) == 13, "one a convolution"


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "wrapped", "module", "half"])
def test_weights_from_files(resnet18: models.ResNet, tmp_path: Path, suffix: str) -> None:
    state = resnet18.state_dict()
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    elif suffix == "half":
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        torch.save(state, path)
    elif suffix == "module":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == "wrapped" else state, path)
    backbone = backbones.build("resnet18", str(path))
    loaded = backbone.model.state_dict()
    assert {key for key, value in loaded.items() if value.dtype != torch.float32} == {
        key for key in loaded if key.endswith("num_batches_tracked")
    }
    for key, value in loaded.items():
        assert torch.equal(value, state[key].to(value.dtype)), key


def test_a_classifier_of_another_size_is_dropped_and_said_so(
    resnet18: models.ResNet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = resnet18.state_dict() | {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}
    path = tmp_path / "seven.pt"
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        backbone = backbones.build("resnet18", str(path))
    assert f"dropped the 7-class layer fc of {path}" in caplog.text
    assert backbone.embed_dim == 512
    logits = backbones.build("resnet18", str(path), "logits")
    assert logits.embed_dim == 7
    assert backbones.rebuild(json.loads(json.dumps(logits.spec()))).embed_dim == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, r"lacks tensors layer1\.0\.conv1\.weight; is it for another"),
        ({"layer9.weight": torch.zeros(1)}, r"has unexpected tensors layer9\.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"has tensors of another shape: conv1\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    resnet18: models.ResNet, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state = resnet18.state_dict() | change
    path = tmp_path / "w.pt"
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    with pytest.raises(UserError, match=message) as caught:
        backbones.build("resnet18", str(path))
    assert str(path) in str(caught.value)


@torch.no_grad()
def test_default_weights_come_from_a_filled_torch_home(resnet18: models.ResNet, torch_home: Path) -> None:
    torch.save(resnet18.state_dict(), torch_home / "resnet18-f37072fd.pth")
    for weights in ("DEFAULT", "IMAGENET1K_V1"):
        backbone = backbones.build("resnet18", weights)
        oracle = torchvision_maps(resnet18, images())["layer4"].mean((2, 3))
        torch.testing.assert_close(backbone(images()), oracle, atol=1e-5, rtol=0)
    assert backbone.preprocessing == Preprocessing.imagenet()


@torch.no_grad()
def test_googlenet_with_its_weights_scales_its_input_also_when_rebuilt(torch_home: Path) -> None:
    """torchvision sets ``transform_input`` when it loads the weights."""
    whole = models.googlenet(init_weights=False)
    torch.save(whole.state_dict(), torch_home / "googlenet-1378be20.pth")
    backbone = backbones.build("googlenet")
    again = backbones.rebuild(json.loads(json.dumps(backbone.spec())))
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(images(1)), backbone(images(1)))
    plain = models.get_model("googlenet", weights="DEFAULT").eval()
    plain.fc = nn.Identity()
    torch.testing.assert_close(backbone(images(1)), plain(images(1)), atol=1e-5, rtol=0)
    assert backbone.model.transform_input


PUBLISHED = [entry for name in from_torchvision.names() for entry in models.get_model_weights(name)]


def test_published_files_are_known_by_their_names() -> None:
    """Their transforms are the entry's, whatever folder they lie in; two entries of a model share no file."""
    for name in from_torchvision.names():
        for entry in models.get_model_weights(name):
            file = entry.url.rpartition("/")[2]
            assert from_torchvision.published(name, f"/somewhere/{file}") is entry
            assert from_torchvision.published(name, f"/somewhere/my-{file}") is None
    assert len(PUBLISHED) > 100


@pytest.mark.parametrize(
    ("entry", "resize"),
    [
        pytest.param(models.ResNet50_Weights.IMAGENET1K_V1, 256, marks=pytest.mark.slow),
        (models.ResNet50_Weights.IMAGENET1K_V2, 232),
        (models.GoogLeNet_Weights.IMAGENET1K_V1, 256),
        pytest.param(models.DenseNet121_Weights.IMAGENET1K_V1, 256, marks=pytest.mark.slow),
        pytest.param(models.Inception_V3_Weights.IMAGENET1K_V1, 342, marks=pytest.mark.slow),
        pytest.param(models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1, 384, marks=pytest.mark.slow),
    ],
)
def test_a_published_file_is_as_its_preset(
    entry: models.WeightsEnum, resize: int, torch_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = type(entry).__name__.removesuffix("_Weights").lower()
    options = {"init_weights": False} if name in from_torchvision.INCEPTIONS else {}
    options |= {"image_size": 384} if name == "vit_b_16" else {}
    file = torch_home / Path(entry.url).name
    state = models.get_model(name, weights=None, **options).state_dict()
    # As torchvision's DenseNet files call them.
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    torch.save({key: value for key, value in old.items() if "num_batches" not in key}, file)
    with caplog.at_level(logging.WARNING):
        given = backbones.build(name, str(file))
    assert not caplog.records
    preset = backbones.build(name, entry.name)
    assert given.spec() == preset.spec()
    assert given.preprocessing == Preprocessing.from_torchvision(entry.transforms())
    assert given.preprocessing.resize == resize
    for key, value in preset.model.state_dict().items():
        assert torch.equal(given.model.state_dict()[key], value), key


def test_a_file_of_another_name_says_what_was_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in models.resnet50().state_dict().items()}
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, tmp_path / "mine.pth")
    given = {"image_size": 96, "mean": [0, 0, 0], "std": [1, 1, 1]}
    for options, lines in (({}, 1), ({"image_size": 64}, 1), (given, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            backbone = backbones.build("resnet50", str(tmp_path / "mine.pth"), preprocessing=options)
        assert len(caplog.records) == lines
        size = str(options.get("image_size", 224))
        for word in ("mine.pth", "ResNet50_Weights.IMAGENET1K_V2", f"cropped to {size} x {size}") if lines else ():
            assert word in caplog.text
        assert backbone.preprocessing.image_size == (int(size), int(size))


@pytest.mark.parametrize("name", from_torchvision.INCEPTIONS)
def test_an_unknown_file_of_an_inception_does_not_transform_its_input(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        model = models.get_model(name, weights=None, init_weights=False)
    state = {key: torch.zeros(()).expand(value.shape) for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "mine.pth")
    with caplog.at_level(logging.WARNING):
        backbone = backbones.build(name, str(tmp_path / "mine.pth"))
    assert not backbone.model.transform_input
    assert "transform_input off" in caplog.text


def test_a_vit_with_weights_for_another_size_keeps_it_when_rebuilt(torch_home: Path) -> None:
    """SWAG's weights are for 384 pixels, which torchvision sets when it loads them."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in models.vit_b_16(image_size=384).state_dict().items()}
    zeros = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}  # a small file
    torch.save(zeros, torch_home / "vit_b_16_swag-9ac1b537.pth")
    backbone = backbones.build("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    with torch.device("meta"):
        again = backbones.rebuild(json.loads(json.dumps(backbone.spec())))
        plain = backbones.build("vit_b_16", "none")
    assert backbone.preprocessing.image_size == again.preprocessing.image_size == (384, 384)
    assert again.model.state_dict()["encoder.pos_embedding"].shape == (1, 577, 768)
    assert plain.preprocessing.image_size == (224, 224)


def test_no_network_is_said_at_once(torch_home: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(
        UserError, match=r"cannot be reached; put resnet18-f37072fd\.pth into TORCH_HOME.*weights=.none."
    ) as caught:
        backbones.build("resnet18")
    assert time.perf_counter() - start < 3
    assert "\n" not in str(caught.value)


def test_a_cached_file_that_would_run_code_is_refused(torch_home: Path, tmp_path: Path, hostile: type[object]) -> None:
    torch.save({"conv1.weight": hostile()}, torch_home / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match=r"is not a weights file .broken, or more than plain tensors"):
        backbones.build("resnet18")
    assert not (tmp_path / "mark").exists()


def test_a_cached_file_of_something_else_is_refused(torch_home: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, torch_home / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match=r"weights in .* cannot be loaded"):
        backbones.build("resnet18")


def test_architecture_changes_need_random_weights(weights: str) -> None:
    wide = backbones.build("resnet18", "none", "logits", {"num_classes": 3})
    assert wide.embed_dim == 3
    with pytest.raises(UserError, match=r"resnet18 cannot be built with \{'depth': 3\}"):
        backbones.build("resnet18", "none", architecture={"depth": 3})
    for given in ("DEFAULT", weights):
        with pytest.raises(UserError, match=r"architecture changes of resnet18 need .weights=.none."):
            backbones.build("resnet18", given, architecture={"num_classes": 3})
    with torch.device("meta"):
        assert backbones.build("vit_b_16", "none", architecture={"image_size": 32}).embed_dim == 768


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"unknown backbone 'resnet81' .*; nearest: resnet18"),
        ("vit_b_61", "nearest: vit_b_16"),
        ("xyzzy", "try resnet18 or google/vit-base-patch16-224-in21k"),
        ("./nowhere/at/all", r"\(no such directory\); check the path"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        backbones.build(name)
    assert "\n" not in str(caught.value)


def test_unknown_weights_and_poolings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"resnet18 has no weights .IMAGENET.; it has DEFAULT, IMAGENET1K_V1"):
        backbones.build("resnet18", "IMAGENET")
    with pytest.raises(UserError, match="resnet18 has no pooling 'cls'; it offers avg, logits"):
        backbones.build("resnet18", "none", "cls")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert backbones.build("resnet18", "none").name == "resnet18", "a folder of that name does not hide it"
