"""ONNX from an extractor on a GPU: the file has the CPU's numbers, and runs where ONNX Runtime has CUDA."""

from pathlib import Path

import pytest
import torch

from tests.extractor.examples import resnet18, transformer
from tests.gpu.networks import difference, pixels

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_an_export(name: str, device: torch.device, tmp_path: Path) -> None:
    from transferkit.extractor.onnx import export

    extractor = resnet18() if name == "resnet18" else transformer("vit", "cls")
    images = pixels(extractor, 3)
    expected, inputs = extractor(images).clone(), extractor.preprocessing.normalize(images)
    export(extractor.to(device), tmp_path / "export", onnx=True)
    offered = onnxruntime.get_available_providers()
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        if provider in offered:
            session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx", providers=[provider])
            embedding = session.run(["embedding"], {"pixel_values": inputs.numpy()})[0]
            assert difference(torch.from_numpy(embedding), expected) <= (1e-4 if provider.startswith("CPU") else 1e-3)


def test_an_engine_that_computes_on_the_cpu_is_not_taken_on_a_gpu(cuda: torch.device) -> None:
    assert resnet18().to(cuda).run_with("auto").engine == "torch"
