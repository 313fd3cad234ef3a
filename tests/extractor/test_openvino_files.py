"""OpenVINO's files of an export, loaded by OpenVINO itself."""

from pathlib import Path

import pytest
import torch

from tests.extractor.examples import resnet18, transformer
from transferkit.errors import UserError
from transferkit.extractor import engine, openvino_files
from transferkit.extractor.onnx import export
from transferkit.extractor.openvino_files import require_openvino


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "resnet18"])
def test_openvino_loads_them_and_gives_pytorchs_numbers(family: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    extractor = resnet18() if family == "resnet18" else transformer(family, "cls")
    found = export(extractor, tmp_path / "export", openvino=True)
    assert found.onnx is None and found.openvino is not None and found.openvino <= 1e-4
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert {"model.xml", "model.bin"} <= names and "model.onnx" not in names
    program = openvino.Core().compile_model(
        str(tmp_path / "export/model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    pixels = torch.randint(256, (5, 3, *extractor.preprocessing.image_size), dtype=torch.uint8)
    outputs = program(extractor.preprocessing.normalize(pixels).numpy())
    embedding = extractor(pixels)
    torch.testing.assert_close(torch.from_numpy(outputs["embedding"]), embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(outputs["logits"]), extractor.classify(embedding), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("absent", "extra"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_missing_library_is_one_line_with_the_remedy(
    absent: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_files, "missing", lambda name: absent if absent in engine.LIBRARIES[name] else None)
    with pytest.raises(UserError, match=rf"{absent}, which is not installed: pip install 'transferkit\[{extra}\]'"):
        require_openvino()
