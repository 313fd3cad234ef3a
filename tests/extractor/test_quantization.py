"""Networks in int8 against ONNX Runtime's own loading of their file, and against float32 as the library computes it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.extractor.examples import resnet18, transformer
from transferkit.errors import UserError
from transferkit.extractor import Extractor, engine, quantization
from transferkit.extractor.quantization import FixedBatches, Quantization, Samples

CPU = torch.device("cpu")
with_nncf = pytest.mark.skipif(
    any(map(engine.missing, ("openvino", "onnx"))) or quantization.nncf_version() is None, reason="no extra int8"
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))


def pictures(extractor: Extractor, count: int = 12) -> Tensor:
    """Smooth random images: uint8 (B, 3, h, w)."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (255 * F.interpolate(coarse, extractor.preprocessing.image_size, mode="bilinear")).byte()


def in_int8(extractor: Extractor, name: engine.Engine = "openvino") -> Extractor:
    samples = Samples("some images", lambda: pictures(extractor))
    return extractor.run_with(name, "int8", Quantization(samples, "a space"))


@with_nncf
@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "swin", "dinov2", "resnet18"])
def test_int8_is_near_float32_in_any_batch_and_equals_the_files_own_numbers(family: str) -> None:
    import onnxruntime

    extractor = resnet18() if family == "resnet18" else transformer(family, "mean")
    batch = pictures(extractor, 19)
    right = extractor(batch)
    forward = in_int8(extractor).forward()
    found = forward(batch)  # as one of 16 and three of 1
    assert found.dtype == torch.float32 and forward.describe()["dtype"] == "int8"
    assert F.cosine_similarity(found, right).min() > 0.97 and not torch.allclose(found, right, atol=1e-4)
    if family != "resnet18":  # which takes a crop of them
        assert torch.equal(extractor.embed(list(batch), 19), found), "few images in another precision"
    quantized = extractor.quantized()
    assert quantized and quantized.file and quantized.file.is_file()
    session = onnxruntime.InferenceSession(quantized.file, providers=["CPUExecutionProvider"])
    inputs = extractor.preprocessing.normalize(batch).numpy()
    own = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    assert F.cosine_similarity(found, own).min() > 0.99
    torch.testing.assert_close(in_int8(extractor, "onnx").forward()(batch), own, atol=1e-3, rtol=1e-3)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, again) for again in pool.map(forward, [batch] * 8))


@with_nncf
@pytest.mark.slow
def test_the_layers_read_8_bits_and_the_file_says_what_it_costs(tmp_path: Path) -> None:
    import onnx

    extractor = in_int8(resnet18())
    extractor.forward()
    quantized = extractor.quantized()
    assert quantized and quantized.file
    model = onnx.load(quantized.file)
    made_by = {output: node for node in model.graph.node for output in node.output}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(layers) == 20  # of ResNet18
    sources = [made_by[name] for node in layers for name in node.input[:2]]
    sources = [made_by[each.input[0]] if each.op_type == "MaxPool" else each for each in sources]
    assert {each.op_type for each in sources} == {"DequantizeLinear"}
    (record,) = (each.value for each in model.metadata_props if each.key == quantization.RECORD)
    assert '"images": 12' in record and '"cosine_mean": 0.9' in record


@with_nncf
@pytest.mark.slow
def test_the_same_images_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for name in ("one", "two"):
        monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / name))
        extractor = transformer("vit", "cls")
        torch.manual_seed(0)
        torch.nn.init.normal_(next(extractor.backbone.parameters()))
        in_int8(extractor).forward()
        quantized = extractor.quantized()
        assert quantized and quantized.file
        files.append(quantized.file)
    assert files[0].name == files[1].name and files[0] != files[1]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_int8_takes_images_and_pytorch_does_not_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "missing", lambda name: None)
    extractor = transformer("vit", "cls").run_with("openvino", "int8")
    with pytest.raises(UserError, match="int8 needs images to measure ranges on; give `int8_images`"):
        extractor.forward()
    with pytest.raises(UserError, match='PyTorch does not compute in int8; give `engine="openvino"`'):
        extractor.run_with("torch", "int8")
    with pytest.raises(UserError, match='int8 is computed on a CPU, not on cuda; give `accelerator="cpu"`'):
        engine.choose_engine("auto", torch.device("cuda"), "int8")
    assert [engine.choose_engine(wanted, CPU, "int8") for wanted in ("auto", "openvino", "onnx")] == [
        "openvino",
        "openvino",
        "onnx",
    ]


@pytest.mark.parametrize("absent", ["openvino", "nncf"])
def test_a_missing_library_is_one_line_with_the_remedy(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "missing", lambda name: absent if absent == "openvino" else None)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None if name == absent else "there")
    with pytest.raises(UserError, match=rf"{absent}, which is not installed: pip install 'transferkit\[int8\]'"):
        in_int8(transformer("vit", "cls")).forward()


def test_the_identity_is_of_weights_layer_images_and_space() -> None:
    one = Quantization(Samples("images", lambda: torch.empty(0)), "space")
    other_images, other_space = (
        Quantization(Samples("others", one.samples.read), "space"),
        Quantization(one.samples, "b"),
    )  # type: ignore[union-attr]
    facts = [("weights", None, "pooled"), ("weights", "1", "pooled"), ("weights", None, "map"), ("w", None, "pooled")]
    found = [one.of(*each).identity for each in facts]
    found += [each.of(*facts[0]).identity for each in (other_images, other_space)]
    assert len(set(found)) == len(found) and one.of(*facts[0]) == one.of(*facts[0])
    kept = Quantization(file=Path("int8.onnx"), identity="recorded")
    assert kept.of("weights", None, "pooled") is kept


def test_batches_of_any_size_are_cut_into_those_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Program:
        def __init__(self, file: Path, precision: str, size: int) -> None:
            self.size = size

        def __call__(self, pixels: Tensor) -> Tensor:
            assert len(pixels) == self.size
            sizes.append(self.size)
            return pixels * 2

    monkeypatch.setattr(quantization, "OpenVino", Program)
    rows = torch.arange(35.0)[:, None]
    assert torch.equal(FixedBatches(Path("a"))(rows), rows * 2) and sizes == [16, 16, 1, 1, 1]


def test_a_network_that_turns_away_in_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = transformer("vit", "cls")

    class Model:
        SerializeToString = bytes

    monkeypatch.setattr(quantization, "require", lambda: None)
    monkeypatch.setattr(quantization, "write_graph", lambda *given: None)
    monkeypatch.setattr(quantization, "quantize", lambda *given: Model())
    monkeypatch.setattr(quantization, "OnnxRuntime", lambda content: lambda inputs: torch.randn(len(inputs), 32))
    monkeypatch.setattr(engine, "missing", lambda name: None)
    with pytest.raises(
        UserError, match=r"gives other embeddings \(mean cosine -?0\.\d+ to float32\); give `precision="
    ):
        in_int8(extractor).forward()
