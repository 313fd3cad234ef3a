"""A GPU gives the numbers of a CPU: to 1e-4 in float32, and in half precision by the cosine."""

import copy
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.gpu.networks import NETWORKS, cosine, difference, pixels
from transferkit.extractor import Extractor
from transferkit.extractor.cuda_graph import refusing_to_wait
from transferkit.extractor.forward import Forward

pytestmark = pytest.mark.gpu

LAYERS = {"resnet18": "layer3", "vit": "block 0", "convnext": "stage 2"}


@pytest.fixture(scope="module", params=list(NETWORKS))
def opened(request: pytest.FixtureRequest, device: torch.device) -> tuple[str, Extractor, Tensor, Tensor]:
    """A network on the device, pixels, and their embeddings in float32 on a CPU."""
    extractor = NETWORKS[request.param]()
    images = pixels(extractor)
    expected = extractor(images).clone()
    return request.param, extractor.to(device), images, expected


@pytest.fixture(params=["off", "on"])
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the process has set does not matter."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32" if request.param == "on" else "ieee"
    yield
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value


def test_float32(opened: tuple[str, Extractor, Tensor, Tensor], tf32: None) -> None:
    _, extractor, images, expected = opened
    assert difference(extractor(images), expected) <= 1e-4
    forward = extractor.forward()
    assert difference(forward(images), expected) <= 1e-4
    assert difference(forward(images.to(extractor.device)), expected) <= 1e-4


def test_bfloat16(opened: tuple[str, Extractor, Tensor, Tensor]) -> None:
    _, extractor, images, expected = opened
    found = extractor.forward("bf16")(images)
    assert found.dtype == torch.float32 and cosine(found, expected) >= 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_precisions_of_training(opened: tuple[str, Extractor, Tensor, Tensor], dtype: torch.dtype) -> None:
    _, extractor, images, expected = opened
    with torch.no_grad(), torch.autocast(extractor.device.type, dtype):
        inputs = extractor.preprocessing.normalize(images.to(extractor.device))
        found = extractor.backbone(inputs)
    assert cosine(found, expected) >= 0.999


def test_earlier_stages_and_features(device: torch.device) -> None:
    for name, layer in LAYERS.items():
        extractor = NETWORKS[name]()
        images, stages = pixels(extractor), extractor.backbone.stage_names
        stage = layer if layer in stages else stages[-2]
        options = [{"layer": stage}, {"features": "unpooled"}, {"normalize": True}]
        on_cpu = [extractor.forward(**option)(images) for option in options]
        extractor.to(device)
        for option, expected in zip(options, on_cpu, strict=True):
            assert difference(extractor.forward(**option)(images), expected) <= 1e-4, (name, option)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_recorded_pass_has_the_same_bits(
    opened: tuple[str, Extractor, Tensor, Tensor], precision: str, cuda: torch.device
) -> None:
    _, extractor, images, _ = opened
    plain, recorded = extractor.forward(precision), extractor.forward(precision)  # type: ignore[arg-type]
    recorded.expect([range(4)] * 8)
    for part in images.split(4):
        assert torch.equal(recorded(part), plain(part))
        assert recorded.recorded is not None
    assert torch.equal(recorded(images[:3]), plain(images[:3])), "a batch of another size"
    results = [recorded(part) for part in images.split(4)]
    assert torch.equal(torch.cat(results), torch.cat([plain(part) for part in images.split(4)])), "results are kept"


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_compiled_pass_has_the_same_numbers(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if device.type == "cpu":  # what is traced is the same; its kernels are PyTorch's own
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    extractor = NETWORKS[name]()
    images = pixels(extractor)
    expected = extractor(images).clone()
    forward = copy.copy(extractor.to(device).forward())
    if device.type == "cpu":
        with torch.inference_mode():
            assert difference(forward.compile_pass()(images), expected) <= 1e-4
        return
    forward.expect([range(6), range(6)], images=10**6)
    for _ in range(2):
        found = torch.cat([forward(part) for part in images.split(6)])
        assert difference(found, expected) <= 1e-4
    assert forward.recorded is not None and caplog.messages == []


def test_what_cannot_be_recorded_runs_as_it_is(cuda: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    extractor = NETWORKS["resnet18"]().to(cuda)
    images = pixels(extractor)
    expected = extractor(images).clone()

    def waits(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert float(output.sum()) == float(output.sum())  # a value on the CPU: no CUDA graph can have it

    extractor.backbone.register_forward_hook(waits)
    forward = extractor.forward()
    forward.expect([range(12)] * 8)
    for _ in range(2):
        assert difference(forward(images), expected) <= 1e-4
    assert len(caplog.messages) == 1 and "neither compiled nor recorded" in caplog.messages[0]


def test_a_pass_never_makes_the_cpu_wait(opened: tuple[str, Extractor, Tensor, Tensor], cuda: torch.device) -> None:
    _, extractor, images, _ = opened
    there = images.to(cuda)
    forwards: list[Forward] = [extractor.forward(), extractor.forward("bf16")]
    for forward in forwards:
        forward(there)
    with refusing_to_wait():
        for forward in forwards:
            forward(there)
