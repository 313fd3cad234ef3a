"""Other engines give PyTorch's numbers within the tolerance of the precision, or PyTorch runs the network."""

import logging
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.extractor.examples import resnet18, transformer
from transferkit.embed import space_of
from transferkit.errors import UserError
from transferkit.extractor import Extractor, engine
from transferkit.extractor.engine import choose_engine, compile_graph, difference, import_openvino
from transferkit.extractor.forward import Features, Stopped

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pixels(extractor: Extractor, count: int = 5) -> Tensor:
    """Preprocessed random images: uint8 (B, 3, h, w)."""
    generator = torch.Generator().manual_seed(0)
    size = (count, 3, *extractor.preprocessing.image_size)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_engine_gives_the_librarys_own_embedding_to_1e_5(name: engine.Engine) -> None:
    extractor = transformer("vit", "cls")
    batch = pixels(extractor)
    with torch.inference_mode():
        right = extractor.backbone.model(pixel_values=extractor.preprocessing.normalize(batch)).last_hidden_state[:, 0]
    forward = extractor.run_with(name).forward()
    found = forward(batch)
    assert difference(found, right, "32") is None and not torch.equal(found, extractor(batch))
    assert extractor.forward() is forward, "made twice"
    assert (space_of(extractor).engine, space_of(extractor, forward).engine) == (name, name)
    assert space_of(extractor) == space_of(extractor, forward)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, again) for again in pool.map(forward, [batch] * 8))
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Stopped):
        forward(batch, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize(
    ("layer", "features"), [(None, "pooled"), ("1", "pooled"), ("1", "unpooled"), (None, "unpooled")]
)
@pytest.mark.parametrize("family", ["resnet18", "vit", "swin", "dinov2_with_registers"])
def test_engines_of_many_networks_and_layers(
    name: engine.Engine, layer: str | None, features: Features, family: str
) -> None:
    extractor = resnet18() if family == "resnet18" else transformer(family, "mean")
    batch = pixels(extractor)
    right = extractor.forward(layer=layer, features=features)(batch)
    found = extractor.run_with(name).forward(layer=layer, features=features)(batch)
    assert found.shape == right.shape and difference(found, right, "32") is None


@pytest.mark.slow
def test_bf16_is_near_and_leaves_as_float32() -> None:
    extractor = transformer("vit", "cls")
    batch = pixels(extractor)
    right = extractor(batch)
    forward = extractor.run_with("openvino", "bf16").forward()
    found = forward(batch)
    assert found.dtype == torch.float32 and forward.describe()["dtype"] == "bfloat16"
    assert difference(found, right, "bf16") is None and difference(found, right, "32") is not None
    assert torch.equal(extractor.embed(list(batch), 8), found), "few images in another precision"


@pytest.mark.parametrize(
    ("wanted", "device", "precision", "installed", "chosen"),
    [
        ("auto", CPU, "32", True, "openvino"),
        ("auto", CPU, "32", False, "torch"),
        ("auto", CUDA, "32", True, "torch"),
        ("torch", CPU, "bf16", True, "torch"),
        ("openvino", CPU, "bf16", True, "openvino"),
        ("openvino", CPU, "32", False, r"openvino is not installed \(pip install 'transferkit\[openvino\]'\)"),
        ("onnx", CPU, "32", False, r"onnxruntime is not installed \(pip install 'transferkit\[onnx\]'\)"),
        ("onnx", CUDA, "32", True, "onnx runs networks on a CPU, not on cuda"),
        ("onnx", CPU, "bf16", True, "ONNX Runtime computes in float32, not in bf16"),
    ],
)
def test_the_engine_falls_back_with_one_line(
    wanted: engine.Choice,
    device: torch.device,
    precision: str,
    installed: bool,
    chosen: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = {"onnx": "onnxruntime"}.get(wanted, "openvino")
    monkeypatch.setattr(engine, "missing", lambda name: None if installed else library)
    caplog.set_level(logging.WARNING)
    found = choose_engine(wanted, device, precision)
    if chosen in ("torch", "openvino", "onnx"):
        assert found == chosen and not caplog.records
    else:
        assert found == "torch" and len(caplog.messages) == 1
        assert re.fullmatch(f"{chosen}: PyTorch runs the network instead", caplog.messages[0])


class Branching(nn.Module):
    """What no exporter takes."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)) if float(pixels.sum()) > 0 else pixels.amax((2, 3))


def test_a_network_that_an_engine_cannot_run_is_refused_or_left_to_torch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r'onnx cannot run it: .*; give `engine="torch"`') as refused:
        compile_graph(Branching().eval(), torch.ones(2, 3, 8, 8), "onnx", "32", "it")
    assert "\n" not in str(refused.value)

    def refuse(*given: object) -> None:
        raise UserError('openvino cannot run it: so it is; give `engine="torch"`')

    monkeypatch.setattr("transferkit.extractor.forward.compile_graph", refuse)
    extractor = transformer("vit", "cls").run_with("auto")
    assert extractor.engine == "torch"
    assert caplog.messages[-1:] == ["PyTorch runs the network: openvino cannot run it: so it is"]
    with pytest.raises(UserError, match="so it is"):
        extractor.run_with("openvino").forward()


def test_other_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.tensor([[3.0, 4.0]])
    assert difference(right + torch.tensor([[4e-5, 0.0]]), right, "32") is None
    assert difference(right + torch.tensor([[6e-5, 0.0]]), right, "32") == "by 1.2e-05 of their length"
    assert difference(right * 2, right, "bf16") is None
    assert difference(torch.tensor([[4.0, 3.0]]), right, "bf16") == "cosine 0.9600"
    assert difference(right * torch.nan, right, "32") and difference(right * torch.nan, right, "bf16")
    monkeypatch.setattr(engine, "OnnxRuntime", lambda path: lambda pixels: pixels.mean((2, 3)) + 1)
    monkeypatch.setattr(engine, "write_graph", lambda *given: None)
    with pytest.raises(UserError, match=r"onnx gives other embeddings of it \(by 1.0e\+00 of their length\); give"):
        compile_graph(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.ones(2, 3, 8, 8), "onnx", "32", "it")


def test_openvino_reports_nothing_over_the_network() -> None:
    import_openvino()
    assert sys.modules["openvino_telemetry"] is None
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__ == "openvino.tools.ovc.telemetry_stub"


SIGNAL_AFTER_ENGINES = """
import gc, os, signal, sys
from pathlib import Path
import numpy, torch
from transferkit.extractor.engine import OpenVino, import_openvino
openvino, file = import_openvino(), Path(sys.argv[1])
pixels = openvino.opset13.parameter([1, 3, 4, 4], numpy.float32)
openvino.save_model(openvino.Model([openvino.opset13.relu(pixels)], [pixels]), file)
engines = [OpenVino(file, "32"), OpenVino(file, "32")]
assert all(engine(torch.ones(1, 3, 4, 4)).sum() == 48 for engine in engines)
for _ in range(2):
    engines.pop(0)  # the first goes first
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGCHLD)
"""


@pytest.mark.slow
def test_a_signal_after_two_engines_have_gone_is_handled(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SIGNAL_AFTER_ENGINES, str(tmp_path / "model.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
