"""Backbones from transformers against plain transformers code with the same weights."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.backbones.families import BLOCKS, CONFIGS, PATCHES, save
from transferkit import backbones
from transferkit.backbones.from_transformers import VIT
from transferkit.errors import UserError

GIVEN = {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # of a directory without a preprocessor
BLOCK = "embeddings, block 0, block 1"
FOUR = "block 0, block 1, block 2, block 3"


def blocks(count: int) -> str:
    """Names of the stages of a network of that many blocks."""
    return ", ".join(["embeddings", *(f"block {index}" for index in range(count))])


# Tokens before the patches (None: a map), the poolings (default first), and the stages.
EXPECTED = {
    "vit": (1, "cls mean cls+mean pooler", BLOCK),
    "dinov2": (1, "cls mean cls+mean pooler", BLOCK),
    "dinov2_with_registers": (5, "cls mean cls+mean pooler", BLOCK),
    "dinov3_vit": (5, "cls mean cls+mean pooler", BLOCK),
    "dinov3_convnext": (1, "cls mean cls+mean pooler", FOUR),
    "deit": (2, "cls mean cls+mean pooler", BLOCK),
    "beit": (1, "pooler cls mean cls+mean", BLOCK),
    "data2vec_vision": (1, "mean cls cls+mean pooler", BLOCK),  # saved without its pooling layer
    "ijepa": (0, "mean pooler", BLOCK),
    "vit_msn": (1, "cls mean cls+mean", BLOCK),
    "pixio": (8, "pooler cls mean cls+mean", BLOCK),
    "radio": (10, "pooler cls mean cls+mean", BLOCK),
    "hiera": (0, "pooler mean", BLOCK),
    "swin": (0, "mean pooler", BLOCK),
    "swinv2": (0, "mean pooler", BLOCK),
    "convnext": (None, "pooler mean", blocks(4)),
    "convnextv2": (None, "pooler mean", blocks(4)),
    "resnet": (None, "pooler mean", blocks(4)),
    "regnet": (None, "pooler mean", blocks(4)),
    "bit": (None, "pooler mean", blocks(4)),
    "focalnet": (0, "mean pooler", BLOCK),
    "efficientnet": (None, "pooler mean", blocks(7)),
    "mobilenet_v1": (None, "mean pooler", blocks(26)),
    "mobilenet_v2": (None, "mean pooler", blocks(16)),
    "mobilevit": (None, "pooler mean", blocks(5)),
    "mobilevitv2": (None, "pooler mean", blocks(5)),
    "levit": (0, "pooler mean", blocks(3)),
    "pvt": (1, "cls mean cls+mean", FOUR),
    "pvt_v2": (None, "mean", FOUR),
    "poolformer": (None, "mean", FOUR),
    "segformer": (None, "mean", FOUR),
    "cvt": (None, "mean", "block 0, block 1, block 2"),
    "swiftformer": (None, "mean", blocks(7)),
    "mlcd": (1, "pooler cls mean cls+mean", BLOCK),
    "sapiens2": (9, "cls mean cls+mean pooler", BLOCK),
    "clip_vision": (1, "pooler cls mean cls+mean", BLOCK),
    "siglip_vision": (0, "pooler mean", BLOCK),
    "aimv2_vision": (0, "pooler mean", BLOCK),
}
SLOW = {"cvt", "efficientnet", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "regnet"}
FAMILIES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in EXPECTED]


class Saved:
    """A folder with one directory per family, saved when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, family: str) -> Path:
        if not (self.root / family).exists():
            save(family, self.root / family)
        return self.root / family


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("families"))


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_features_equal_plain_transformers(saved: Saved, family: str) -> None:
    prefix, poolings, stages = EXPECTED[family]
    plain = transformers.AutoModel.from_pretrained(saved / family).eval()
    built = backbones.build(str(saved / family))
    assert built.pooling == poolings.split()[0]
    assert ", ".join(built.stages) == stages
    pixels = images(built.preprocessing.image_size[0])
    output = plain(pixel_values=pixels)
    hidden = output.last_hidden_state
    patches = hidden.flatten(2).mT if prefix is None else hidden[:, prefix:]
    oracle = {
        "cls": hidden[:, 0],
        "mean": patches.mean(1),
        "pooler": output.get("pooler_output", output.get("summary")),
    }
    oracle["cls+mean"] = torch.cat((oracle["cls"].flatten(1), oracle["mean"]), 1)
    features = built.forward_features(pixels)
    if family == "hiera":  # transformers gives its tokens in the order of its windows, and in that of the image
        whole = plain(pixel_values=pixels, output_hidden_states=True)
        patches = whole.reshaped_hidden_states[-1].flatten(1, 2)
        torch.testing.assert_close(patches.sort(1)[0], hidden.sort(1)[0])
    torch.testing.assert_close(features, hidden if prefix is None else patches, atol=1e-5, rtol=1e-5)
    for pooling in poolings.split():
        if oracle[pooling] is None:  # AutoModel leaves the pooling layer out
            continue
        backbone = backbones.build(str(saved / family), pooling=pooling)
        assert set(backbone.poolings) == set(poolings.split())
        embedding = backbone(pixels)
        torch.testing.assert_close(embedding, oracle[pooling].flatten(1), atol=1e-5, rtol=1e-5)
        assert backbone.embed_dim == embedding.shape[1]
        assert (embedding[0] - embedding[1]).abs().max() > 1e-3, "a model that says the same of all images"


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["vit", "deit", "beit", "data2vec_vision", "ijepa", "vit_msn", "hiera", "swin", "pvt"]
)
def test_the_default_is_what_transformers_classifier_reads(family: str, tmp_path: Path) -> None:
    found: Any = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(CONFIGS[family])]
    plain = (found[0] if isinstance(found, tuple) else found)(CONFIGS[family]).eval()
    plain.save_pretrained(tmp_path)
    size = CONFIGS[family].image_size
    backbone = backbones.build(str(tmp_path), preprocessing=GIVEN | {"image_size": size})
    read: list[Tensor] = []
    plain.classifier.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    plain(pixel_values=images(backbone.preprocessing.image_size[0]))
    torch.testing.assert_close(backbone(images(backbone.preprocessing.image_size[0])), read[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_stages_of_a_vit_put_out_all_tokens_of_each_block(saved: Saved) -> None:
    backbone = backbones.build(str(saved / "vit"))
    plain = transformers.AutoModel.from_pretrained(saved / "vit").eval()
    hidden = plain(pixel_values=images(), output_hidden_states=True).hidden_states
    assert torch.equal(backbone.forward_stage(images(), "embeddings"), hidden[0])
    assert torch.equal(backbone.forward_stage(images(), "block 0"), hidden[1])
    with pytest.raises(UserError, match="no stage 'layer1'; its stages: embeddings, block 0, block 1"):
        backbone.forward_stage(images(), "layer1")


def test_the_default_vit_needs_no_hub_and_has_twelve_blocks() -> None:
    backbone = backbones.build(VIT, "none")
    assert backbone.embed_dim == 768
    assert list(backbone.stages) == ["embeddings", *(f"block {index}" for index in range(12))]
    assert backbone.stage_of("layernorm.weight") == 12
    assert backbone.stage_of("embeddings.cls_token") == 0
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656  # ViT-B/16 without pooler and head


@torch.no_grad()
def test_another_image_size_interpolates_the_positions(saved: Saved) -> None:
    backbone = backbones.build(str(saved / "vit"))
    plain = transformers.AutoModel.from_pretrained(saved / "vit").eval()
    oracle = plain(pixel_values=images(48), interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(images(48)), oracle, atol=1e-5, rtol=0)


def test_architecture_changes(saved: Saved) -> None:
    small = {**BLOCKS, **PATCHES}
    backbone = backbones.build(VIT, "none", architecture=small)
    assert (backbone.embed_dim, len(backbone.stages), backbone.preprocessing.image_size) == (32, 3, (32, 32))
    with pytest.raises(UserError, match="no option 'hiden_size'; nearest: hidden_size"):
        backbones.build(VIT, "none", architecture={"hiden_size": 32})
    with pytest.raises(UserError, match=r"does not fit|cannot be built"):
        backbones.build(VIT, "none", architecture={"hidden_size": "wide"})
    for weights in ("DEFAULT", str(saved / "vit" / "model.safetensors")):
        with pytest.raises(UserError, match=r"need .weights=.none."):
            backbones.build(str(saved / "vit"), weights, architecture=small)


def test_unknown_pooling_names_those_there_are(saved: Saved) -> None:
    with pytest.raises(UserError, match="no pooling 'avg'; it offers cls, mean, cls"):
        backbones.build(str(saved / "vit"), pooling="avg")


@torch.no_grad()
def test_half_precision_files_become_float32(saved: Saved, tmp_path: Path) -> None:
    plain = transformers.AutoModel.from_pretrained(saved / "vit").half()
    plain.save_pretrained(tmp_path / "half")
    backbone = backbones.build(str(tmp_path / "half"), preprocessing=GIVEN)
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {torch.float32}
    oracle = plain.float()(pixel_values=images()).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(images()), oracle, atol=1e-5, rtol=0)


def test_maps_with_their_channels_last_are_refused(tmp_path: Path) -> None:
    """A mean over axes 2 and 3 of SAM 2's would be over columns and channels."""
    widths = {"embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8]}
    for size in (64, 256):
        config = transformers.Sam2HieraDetConfig(hidden_size=8, num_attention_heads=1, image_size=[size] * 2, **widths)
        config.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=rf"it puts out {size // 32} x {size // 32} x 64, the channels last"):
            backbones.build(str(tmp_path), "none")


def test_cvt_has_no_pooler(tmp_path: Path) -> None:
    """Its model takes ``add_pooling_layer`` and pools nothing."""
    widths = {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}
    transformers.CvtConfig(**widths).save_pretrained(tmp_path)
    backbone = backbones.build(str(tmp_path), "none")
    assert (backbone.poolings, backbone.embed_dim) == (("mean",), 24)
    with pytest.raises(UserError, match="has no pooling 'pooler'; it offers mean"):
        backbones.build(str(tmp_path), "none", "pooler")


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}, {"num_attention_heads": 4}])
def test_the_spec_tells_apart_what_the_weights_do_not(change: dict[str, Any]) -> None:
    small = {**BLOCKS, **PATCHES}
    one = backbones.build(VIT, "none", architecture=small)
    other = backbones.build(VIT, "none", architecture=small | change)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert not torch.equal(one(images()), other(images()))
    assert one.spec() != other.spec()


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_a_file(saved: Saved, tmp_path: Path, wrapped: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A classifier's state dict: the base model is found in it, the rest dropped and said so."""
    whole = transformers.ViTForImageClassification(CONFIGS["vit"]).eval()
    state = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    if wrapped:
        path = tmp_path / "model.pt"
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    with caplog.at_level(logging.WARNING):
        backbone = backbones.build(str(saved / "vit"), str(path))
    assert "dropped classifier.bias, classifier.weight" in caplog.text
    oracle = whole.base_model(pixel_values=images()).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(images()), oracle, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layernorm.weight": None}, "lacks tensors layernorm.weight; is it for another architecture"),
        ({"layernorm.extra": torch.zeros(1)}, "has unexpected tensors layernorm.extra"),
        ({"layernorm.weight": torch.zeros(7)}, "has tensors of another shape: layernorm.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    saved: Saved, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state = backbones.build(str(saved / "vit")).model.state_dict() | change
    path = tmp_path / "w.safetensors"
    save_file({key: value for key, value in state.items() if value is not None}, path)
    with pytest.raises(UserError, match=message):
        backbones.build(str(saved / "vit"), str(path))


def test_a_directory_that_lacks_tensors_is_refused(saved: Saved, tmp_path: Path) -> None:
    """transformers alone would make them up."""
    model = transformers.AutoModel.from_pretrained(saved / "vit")
    state = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"lacks tensors layers\.1\.mlp"):
        backbones.build(str(tmp_path), preprocessing=GIVEN)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", "nothing", "is not a model directory .it has no config.json"),
        ("config.json", "{", "configuration"),
        ("config.json", '{"model_type": "hamster"}', "configuration"),
        (
            "config.json",
            '{"model_type": "hamster", "auto_map": {"AutoConfig": "evil.Evil"}}',
            "its own code, which is never run",
        ),
    ],
)
def test_directories_that_hold_no_model(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    start = time.perf_counter()
    with pytest.raises(UserError, match=message) as caught:
        backbones.build(str(tmp_path))
    assert time.perf_counter() - start < 3
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_a_pickled_model_that_would_run_code_is_refused(saved: Saved, tmp_path: Path, hostile: type[object]) -> None:
    (tmp_path / "config.json").write_text((saved / "vit" / "config.json").read_text())
    torch.save({"layernorm.weight": hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"the weights of .* cannot be used|no usable weights"):
        backbones.build(str(tmp_path), preprocessing=GIVEN)
    assert not (tmp_path / "mark").exists()


@torch.no_grad()
def test_a_filled_cache_needs_no_network(saved: Saved, filled_cache: Path) -> None:
    """The layout of huggingface_hub: models--OWNER--NAME/refs/main and snapshots/REVISION."""
    backbone = backbones.build("someone/tiny-vit")
    plain = transformers.AutoModel.from_pretrained(filled_cache).eval()
    oracle = plain(pixel_values=images()).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(images()), oracle, atol=1e-5, rtol=0)
    assert backbone.preprocessing.image_size == (32, 32)
    assert backbone.name == "someone/tiny-vit"


@pytest.mark.parametrize("lost", ["preprocessor_config.json", "model.safetensors", "config.json"])
def test_no_network_is_said_at_once_whatever_lacks(filled_cache: Path, lost: str) -> None:
    (filled_cache / lost).unlink()
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"cannot be reached; give a local directory.*HF_HOME.*weights=.none."):
        backbones.build("someone/tiny-vit")
    assert time.perf_counter() - start < 3, "transformers' retries take 25 s"


def test_a_model_that_is_nowhere(filled_cache: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"^nobody/nothing \(configuration\): not in the local cache"):
        backbones.build("nobody/nothing", "none")
    assert time.perf_counter() - start < 3
