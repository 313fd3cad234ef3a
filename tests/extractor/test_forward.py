"""The fast forward pass against the plain libraries with the same weights."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from tests.backbones.families import make
from tests.extractor.examples import resnet18, transformer
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward, Stopped, find_stage


def pixels(extractor: Extractor, count: int = 3) -> Tensor:
    """Preprocessed random images: uint8 (B, 3, h, w)."""
    return torch.randint(0, 256, (count, 3, *extractor.preprocessing.image_size), dtype=torch.uint8)


def relative(value: Tensor, oracle: Tensor) -> float:
    """Largest error of a row, relative to its length."""
    return float(((value - oracle).flatten(1).norm(dim=1) / oracle.flatten(1).norm(dim=1)).max())


def spread_statistics(module: nn.Module) -> None:
    """Running statistics as training leaves them; those of a new network fold to nothing."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.2)


def plain_resnet18(extractor: Extractor) -> nn.Module:
    """torchvision's own module with the same weights."""
    model = models.resnet18().eval()
    model.fc = nn.Identity()
    model.load_state_dict(extractor.backbone.model.state_dict())
    return model


@torch.no_grad()
def test_resnet18_equals_torchvisions_to_1e_5() -> None:
    extractor = resnet18()
    spread_statistics(extractor.backbone)
    before = extractor.weights_sha256()
    forward, batch = extractor.forward(), pixels(extractor)
    oracle = plain_resnet18(extractor)(extractor.preprocessing.normalize(batch))
    embedding = forward(batch)
    assert embedding.dtype == torch.float32 and embedding.shape == (3, 512) and forward.shape == (512,)
    assert relative(embedding, oracle) < 1e-5
    assert torch.equal(forward(batch), embedding)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in forward.backbone.modules()), "not folded"
    assert extractor.weights_sha256() == before, "the extractor's own weights were touched"
    assert sum(isinstance(module, nn.BatchNorm2d) for module in extractor.backbone.modules()) == 20


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "dinov2_with_registers", "swin", "resnet"])
def test_transformers_models_equal_their_own_to_1e_5(family: str) -> None:
    extractor = transformer(family, "mean")
    spread_statistics(extractor.backbone)
    model, batch = make(family), pixels(extractor)
    model.load_state_dict(extractor.backbone.model.state_dict(), strict=False)
    hidden = model(pixel_values=extractor.preprocessing.normalize(batch)).last_hidden_state
    prefix = {"vit": 1, "dinov2_with_registers": 5}.get(family, 0)
    oracle = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, prefix:].mean(1)
    assert relative(extractor.forward()(batch), oracle) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"])
def test_batchnorm_is_folded_only_where_it_follows_a_convolution(name: str) -> None:
    extractor = Extractor.from_pretrained(name, "none", preprocessing={"image_size": 64})
    spread_statistics(extractor.backbone)
    batch = pixels(extractor, 2)
    assert relative(extractor.forward()(batch), extractor(batch)) < 1e-5


@torch.no_grad()
def test_bf16_is_near_and_leaves_as_float32() -> None:
    for extractor in (resnet18(), transformer("vit", "cls")):
        batch = pixels(extractor)
        embedding = extractor.forward("bf16")(batch)
        assert embedding.dtype == torch.float32
        assert torch.cosine_similarity(embedding, extractor(batch)).min() > 0.999
        assert not torch.equal(embedding, extractor.forward()(batch))
        assert next(extractor.backbone.parameters()).dtype == torch.float32


@torch.no_grad()
def test_an_earlier_layer_of_resnet18_is_the_mean_of_its_map() -> None:
    extractor = resnet18()
    spread_statistics(extractor.backbone)
    batch = pixels(extractor)
    nodes = create_feature_extractor(plain_resnet18(extractor), ["layer3", "layer4"])
    maps = nodes(extractor.preprocessing.normalize(batch))
    forward = extractor.forward(layer="3")
    assert (forward.layer, forward.pooling, forward.shape) == ("layer3", "mean", (256,))
    assert relative(forward(batch), maps["layer3"].mean((2, 3))) < 1e-5
    assert relative(extractor.forward(layer="layer3", features="map")(batch), maps["layer3"]) < 1e-5
    assert relative(extractor.forward(features="map")(batch), maps["layer4"]) < 1e-5
    last = extractor.forward(layer="layer4")
    assert (last.layer, last.pooling) == (None, "avg"), "the last layer is the end"
    assert torch.equal(last(batch), extractor.forward()(batch))


@torch.no_grad()
def test_an_earlier_block_of_a_vit_is_its_class_token() -> None:
    extractor = transformer("vit", "cls")
    batch = pixels(extractor)
    model = extractor.backbone.model
    states = model(pixel_values=extractor.preprocessing.normalize(batch), output_hidden_states=True).hidden_states
    forward = extractor.forward(layer="0")
    assert (forward.layer, forward.pooling, forward.shape) == ("block 0", "cls", (32,))
    assert relative(forward(batch), states[1][:, 0]) < 1e-5
    tokens = extractor.forward(layer="block 0", features="tokens")
    assert tokens.shape == (16, 32) and tokens.pooling == "none"
    assert relative(tokens(batch), states[1][:, 1:]) < 1e-5
    first = extractor.forward(layer="embeddings")
    assert first.pooling == "mean", "the class token has seen nothing yet"
    assert relative(first(batch), states[0].mean(1)) < 1e-5


@torch.no_grad()
def test_tokens_of_a_torchvision_transformer_leave_the_class_token_out() -> None:
    extractor = Extractor.from_pretrained(
        "vit_b_16", "none", preprocessing={"resize": [32, 32], "crop": [32, 32]}, architecture={"image_size": 32}
    )
    assert extractor.forward(features="tokens").shape == (4, 768)
    assert extractor.forward(layer="3", features="tokens").shape == (4, 768)
    assert extractor.forward(layer="3").pooling == "cls"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "tokens"}, r'resnet18 has a map of \(512, 2, 2\), not tokens; give `features="map"`'),
        ({"layer": "layer9"}, r"resnet18 has no stage 'layer9'; its stages: stem, layer1"),
        ({"layer": "9"}, r"resnet18 has no stage '9'"),
        ({"features": "map", "normalize": True}, r'`normalize` applies to pooled embeddings, not to `features="'),
    ],
)
def test_what_a_resnet_has_not(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resnet18().forward(**options)


def test_a_vit_has_no_map() -> None:
    with pytest.raises(UserError, match=r'has tokens of \(16, 32\), not map; give `features="tokens"`'):
        transformer("vit", "cls").forward(features="map")


def test_stages_by_number() -> None:
    backbone = resnet18().backbone
    assert [find_stage(backbone, name) for name in ("stem", "layer1", "2")] == ["stem", "layer1", "layer2"]


@torch.no_grad()
def test_normalised_embeddings_have_length_1() -> None:
    extractor = resnet18()
    batch = pixels(extractor)
    torch.testing.assert_close(
        extractor.forward(normalize=True)(batch), nn.functional.normalize(extractor.forward()(batch))
    )


def test_threads_do_not_meet() -> None:
    extractor = resnet18()
    forward = extractor.forward(layer="layer2")  # found by a hook, which another thread must not fill
    batches = [pixels(extractor) for _ in range(12)]
    alone = [forward(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(forward, batches), alone))


def test_a_pass_that_nobody_waits_for_ends() -> None:
    extractor = transformer("vit", "cls")
    forward, stopped = extractor.forward(), Event()
    forward(pixels(extractor), stopped)
    stopped.set()
    with pytest.raises(Stopped):
        forward(pixels(extractor), stopped)
    forward(pixels(extractor))


def test_folded_weights_are_those_of_its_making() -> None:
    extractor = resnet18()
    batch, forward = pixels(extractor), extractor.forward()
    before = forward(batch)
    with torch.no_grad():
        extractor.backbone.model.get_parameter("conv1.weight").mul_(2)
    assert torch.equal(forward(batch), before)
    assert not torch.equal(extractor.forward()(batch), before)


def test_what_the_metadata_say() -> None:
    assert resnet18().forward("bf16", "layer1", "map").describe() == {
        "pooling": "none",
        "layer": "layer1",
        "features": "map",
        "embed_dim": 64 * 16 * 16,
        "shape": [64, 16, 16],
        "normalize": False,
        "dtype": "bfloat16",
    }
    assert isinstance(resnet18().forward(), Forward)


def test_on_a_cpu_no_pass_is_recorded_or_compiled() -> None:
    forward = resnet18().forward()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = forward(pixels)
    forward.expect([range(2)] * 100, images=10**7)
    assert torch.equal(forward(pixels), expected) and forward.recorded is None
