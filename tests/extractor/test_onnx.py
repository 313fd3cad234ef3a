"""Checkpoint, export, reloaded export and ONNX agree; what is in the ONNX file; what is refused."""

import json
import math
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import transferkit
from tests.backbones.families import CONFIGS
from tests.bench.bench_parity import BACKBONES, REGIMES, decode, draw_images, parity, trained
from tests.extractor.examples import CLASSES, resnet18, transformer
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.engine import LIBRARIES
from transferkit.extractor.onnx import Graph, export, largest_difference, name_outputs


class Case(NamedTuple):
    folder: Path
    paths: list[Path]
    differences: dict[str, float]
    extractor: Extractor


FAST = {("ViT", "frozen")}
PAIRS = [(backbone, regime) for backbone in BACKBONES for regime in REGIMES]


@pytest.fixture(
    scope="module",
    params=[pytest.param(pair, marks=[] if pair in FAST else [pytest.mark.slow], id="-".join(pair)) for pair in PAIRS],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A fitted extractor, exported with ONNX, and 50 images."""
    folder = tmp_path_factory.mktemp("export")
    paths = draw_images(folder / "images", 50)
    checkpoint = trained(folder, folder / "images", *request.param)
    differences = parity(checkpoint, folder, paths)
    return Case(folder / "export", paths, differences, Extractor.from_pretrained(checkpoint))


def test_embeddings_agree_in_every_form(case: Case) -> None:
    onnx_difference = case.differences.pop("onnx")
    assert onnx_difference <= 1e-4
    assert case.differences.keys() == {"library", "export", "exported again"}
    assert max(case.differences.values()) <= 1e-5
    embedding = case.extractor.embed(case.paths)
    assert embedding.std(0).max() > 1e-2, "a model that says the same of all images"


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3, 17])
def test_onnx_gives_embedding_and_logits_for_any_batch(case: Case, images: int) -> None:
    session = onnxruntime.InferenceSession(case.folder / "model.onnx")
    height, width = case.extractor.preprocessing.image_size
    dim, head = case.extractor.embed_dim, case.extractor.head
    assert head is not None
    (given,), outputs = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("pixel_values", "tensor(float)", ["batch", 3, height, width])
    assert [(o.name, o.shape) for o in outputs] == [("embedding", ["batch", dim]), ("logits", ["batch", 2])]
    pixels = torch.stack([case.extractor.preprocessing(decode(path)) for path in case.paths[:images]])
    embedding, logits = map(torch.from_numpy, session.run(None, {"pixel_values": pixels.numpy()}))
    oracle = case.extractor.backbone(pixels)
    torch.testing.assert_close(embedding, oracle, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, head(oracle), atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(1), head(oracle).argmax(1))


def test_the_onnx_file_says_how_to_prepare_images(case: Case) -> None:
    onnx.checker.check_model(case.folder / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(case.folder / "model.onnx")
    found = session.get_modelmeta().custom_metadata_map
    it = case.extractor.preprocessing
    assert json.loads(found["class_names"]) == ["apples", "limes"]
    assert json.loads(found["mean"]) == list(it.mean)
    assert json.loads(found["std"]) == list(it.std)
    assert json.loads(found["resize"]) == (it.resize if isinstance(it.resize, int) else list(it.resize))
    assert json.loads(found["crop"]) == (list(it.crop) if it.crop else None)
    assert found["interpolation"] == "bilinear"
    assert found["transferkit"] == transferkit.__version__
    assert found["weights_sha256"] == case.extractor.weights_sha256()


def test_the_record_of_the_fit_is_in_the_card(case: Case) -> None:
    record = json.loads((case.folder / "transferkit.json").read_text())["training"]
    assert record["images"] == {"train": 26, "val": 24}
    assert record["class_counts"] == {"apples": 13, "limes": 13}
    card = (case.folder / "README.md").read_text(encoding="utf-8")
    assert f"| regime | {record['regime']} |" in card
    assert "| apples | 13 |" in card and "| val images | 24 |" in card
    value = record["metrics"]["val/acc"]
    assert f"| val/acc | {value:.4f} | 0." in card and "(n = 24) |" in card
    assert "### ONNX Runtime" in card


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("headless", [True, False])
def test_onnx_of_l2_normalised_embeddings_and_without_a_head(
    headless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the weights in a file of their own, as beyond 2 GB."""
    monkeypatch.setattr("transferkit.extractor.onnx.PROTOBUF_BYTES", 0 if headless else 2**31)
    extractor = transformer("swin", "pooler") if headless else transformer("vit", "cls+mean", l2_normalize=True)
    if headless:
        extractor.head, extractor.class_names = None, []
    pixels = torch.rand(5, 3, *extractor.preprocessing.image_size)
    before = extractor.backbone(pixels)
    difference = export(extractor, tmp_path / "export", onnx=True).onnx
    assert difference is not None and difference < 1e-4
    assert torch.equal(extractor.backbone(pixels), before), "exporting changes nothing"
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    outputs = session.run(None, {"pixel_values": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs[0]), before, atol=1e-4, rtol=0)
    assert (tmp_path / "export" / "model.onnx.data").exists() is headless
    assert len(outputs) == (1 if headless else 2)
    if extractor.head:
        oracle = extractor.head(before / before.norm(dim=1, keepdim=True))
        torch.testing.assert_close(torch.from_numpy(outputs[1]), oracle, atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_becomes_onnx_and_its_outputs_have_their_names_alone(family: str, tmp_path: Path) -> None:
    """CLIP's and SigLIP's table of positions is an ``embedding`` in the exporter's own names."""
    pooling = "pooler" if family in ("siglip_vision", "aimv2_vision", "convnext") else "mean"
    extractor = transformer(family, pooling)
    export(extractor, tmp_path / "export", onnx=True)
    graph = onnx.load(tmp_path / "export" / "model.onnx").graph
    values = [
        *(name for node in graph.node for name in node.output if name),
        *(each.name for each in graph.initializer),
    ]
    assert len(values) == len(set(values))
    assert [output.name for output in graph.output] == ["embedding", "logits"]
    assert [value.name for value in graph.input] == ["pixel_values"]
    pixels = torch.rand(2, 3, *extractor.preprocessing.image_size)
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    embedding, logits = map(torch.from_numpy, session.run(["embedding", "logits"], {"pixel_values": pixels.numpy()}))
    oracle = extractor.backbone(pixels)
    torch.testing.assert_close(embedding, oracle, atol=1e-4, rtol=1e-4)
    assert extractor.head is not None
    torch.testing.assert_close(logits, extractor.head(oracle), atol=1e-4, rtol=1e-4)


def test_values_of_a_graph_make_room_for_the_outputs() -> None:
    """Of operators and of constants, whichever comes first."""
    given = onnx_ir.Value(name="pixel_values")
    constant = onnx_ir.Value(name="logits", const_value=onnx_ir.tensor(np.zeros(1, np.float32), name="logits"))
    first = onnx_ir.node("Add", [given, constant])
    first.outputs[0].name = "embedding"
    last, other = onnx_ir.node("Relu", first.outputs), onnx_ir.node("Abs", first.outputs)
    outputs = [other.outputs[0], last.outputs[0]]
    graph = onnx_ir.Graph([given], outputs, nodes=[first, last, other], initializers=[constant])
    name_outputs(graph)
    assert [value.name for value in graph.outputs] == ["embedding", "logits"]
    names = [given.name, *graph.initializers, first.outputs[0].name, last.outputs[0].name, other.outputs[0].name]
    assert len(set(names)) == 5


@pytest.mark.parametrize("fault", ["broken", "unknown operator"])
def test_a_file_that_the_exporter_got_wrong_ends_in_one_line(fault: str, tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    if fault == "broken":
        (tmp_path / "model.onnx").write_bytes(b"no graph")
    else:
        info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Nothing", ["x"], ["x2"], domain="nowhere")
        graph = onnx.helper.make_graph([node], "g", [info], [])
        opsets = [onnx.helper.make_opsetid("nowhere", 1), onnx.helper.make_opsetid("", 18)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    with pytest.raises(
        UserError, match=r"^someone/model as ONNX cannot be run: .*; export it without `onnx`$"
    ) as caught:
        largest_difference(extractor, Graph(extractor), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", LIBRARIES["onnx"])
def test_without_the_extra(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"^`onnx` needs {library}, .*: pip install 'transferkit\[onnx\]'$"):
        export(transformer("vit", "cls"), tmp_path / "export", onnx=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_onnx_file_that_disagrees_is_refused_and_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is right; what it is compared with is not."""
    extractor = transformer("vit", "cls")
    assert extractor.head is not None
    with torch.no_grad():
        for parameter in extractor.head.parameters():
            parameter.mul_(1e-5)
    export(extractor, tmp_path / "right", onnx=True)
    for name, factor, shift, message in (
        ("embedding", 1, 1e-3, r"as ONNX gives another embedding \(difference 1\.0e-03, 1 images\)"),
        ("logits", math.nan, 0, r"as ONNX gives another logits \(difference nan"),
        ("logits", -1, 0, "as ONNX gives another top class"),
    ):
        with pytest.raises(UserError, match=message):
            largest_difference(extractor, Changed(extractor, name, factor, shift), tmp_path / "right" / "model.onnx")
    monkeypatch.setattr("transferkit.extractor.onnx.TOLERANCE", -1)
    with pytest.raises(UserError, match="as ONNX gives another embedding"):
        export(extractor, tmp_path / "wrong", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


class Changed(Graph):
    def __init__(self, extractor: Extractor, output: str, factor: float, shift: float) -> None:
        super().__init__(extractor)
        self.output, self.factor, self.shift = output, factor, shift

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        embedding, logits = super().forward(pixel_values)
        if self.output == "embedding":
            return embedding * self.factor + self.shift, logits
        return embedding, logits * self.factor + self.shift


@pytest.mark.slow
def test_an_operation_that_onnx_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = transformer("vit", "cls")
    before = extractor.backbone.model.config._attn_implementation

    def forward(self: Any, pixel_values: Tensor) -> Tensor:
        return self.backbone(pixel_values) + torch.linalg.svdvals(pixel_values).sum()

    monkeypatch.setattr(Graph, "forward", forward)
    with pytest.raises(UserError, match=r"someone/model cannot become ONNX: .*; export it without `onnx`$") as caught:
        export(extractor, tmp_path / "export", onnx=True)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert extractor.backbone.model.config._attn_implementation == before


@pytest.fixture
def small_files() -> Iterator[None]:
    """A disk on which the weights have room (torchvision's, 45 MB), and the ONNX file beside them has not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (44_770_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_while_onnx_is_written(tmp_path: Path) -> None:
    resnet18().save_pretrained(tmp_path / "export")
    before = load_file(tmp_path / "export" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"cannot write .*/export: File too large; choose another path or free disk space"
    ):
        export(resnet18(), tmp_path / "export", onnx=True, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert all(
        torch.equal(before[key], value) for key, value in load_file(tmp_path / "export/model.safetensors").items()
    )
    assert Extractor.from_pretrained(tmp_path / "export").class_names == CLASSES
