"""Exporting an extractor: its directory, optionally with ONNX and OpenVINO files that are checked against PyTorch."""

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import transferkit
from transferkit.errors import UserError, first_line
from transferkit.extractor import Extractor, model_card, pretrained
from transferkit.extractor.core import head_logits
from transferkit.extractor.engine import LIBRARIES, plain_attention
from transferkit.extractor.forward import network_input
from transferkit.extractor.int8_export import Judge, Loss, write_int8
from transferkit.extractor.openvino_files import write_openvino
from transferkit.extractor.quantization import Samples

OUTPUTS = ("embedding", "logits")
BATCHES = (1, 3, 17)
TOLERANCE = 1e-4  # of the largest difference; relative where values exceed 1
PROTOBUF_BYTES = 2**31 - 2**24  # a larger ONNX file keeps its weights in another one


class Int8(NamedTuple):
    """How the exported network is to compute in int8.

    Attributes:
        samples: images to measure ranges on.
        judge: images to measure the loss on.
        max_drop: points of accuracy that may be lost; None is any.
    """

    samples: Samples
    judge: Judge
    max_drop: float | None = None


class Exported(NamedTuple):
    """What exporting found.

    Attributes:
        onnx: the largest absolute difference between ONNX Runtime and PyTorch; None without ONNX in float32.
        openvino: between OpenVINO and ONNX Runtime; None without OpenVINO.
        loss: what int8 costs; None without it.
    """

    onnx: float | None = None
    openvino: float | None = None
    loss: Loss | None = None


def export(
    extractor: Extractor,
    path: Path,
    onnx: bool = False,
    overwrite: bool = False,
    training: Mapping[str, Any] | None = None,
    openvino: bool = False,
    int8: Int8 | None = None,
) -> Exported:
    """Write the extractor directory atomically.

    Args:
        extractor: the extractor.
        path: the directory to write.
        onnx: also write ``model.onnx``, see :func:`write_onnx`.
        overwrite: replace an earlier export.
        training: facts about the training to add to the extractor's record, such as ``metrics``.
        openvino: also write ``model.xml`` and ``model.bin``, see
            :func:`~transferkit.extractor.openvino_files.write_openvino`.
        int8: lets the files of ``onnx`` and ``openvino`` compute in int8.

    Raises:
        UserError: the directory cannot be written or holds something else, or a file cannot be made.
    """
    exported = Exported()
    extractor = Extractor(
        extractor.backbone,
        extractor.preprocessing,
        extractor.head,
        extractor.class_names,
        extractor.l2_normalize,
        {**extractor.record, **(training or {})},
        extractor.calibration,
    )
    with pretrained.replacing(path, overwrite) as folder:
        layout = pretrained.fill(extractor, folder)
        if onnx or openvino:
            exported = write_engine_files(extractor, folder, onnx, openvino, int8)
        model_card.write(extractor, layout, folder, exported.loss)
    return exported


def write_engine_files(
    extractor: Extractor, folder: Path, onnx: bool, openvino: bool, int8: Int8 | None = None
) -> Exported:
    """Write the files of :func:`export` that engines load."""
    loss = given = None
    with tempfile.TemporaryDirectory() as scratch:
        file = (folder if onnx else Path(scratch)) / "model.onnx"
        difference = write_onnx(extractor, file)
        if int8:
            loss = write_int8(extractor, file, *int8)
        if openvino:
            few = BATCHES[1]
            shown = extractor.preprocessing.normalize(int8.judge.pixels[:few]) if int8 else noise(extractor, few).cpu()
            given = write_openvino(file, folder, shown, metadata(extractor), int8 is not None, extractor.name)
    return Exported(difference if onnx and not int8 else None, given, loss)


def require_onnx() -> None:
    """Import the libraries for ONNX.

    Raises:
        UserError: one of them is not installed.
    """
    for name in LIBRARIES["onnx"]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"`onnx` needs {name}, which cannot be imported: pip install 'transferkit[onnx]'"
            ) from error


class Graph(nn.Module):
    """Backbone and head as one module for the exporter.

    Args:
        extractor: what to export.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.backbone, self.head, self.l2_normalize = extractor.backbone, extractor.head, extractor.l2_normalize

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the embedding, and logits if there is a head, of normalized float32 pixels (B, 3, h, w)."""
        embedding: Tensor = self.backbone(pixel_values)
        if self.head is None:
            return (embedding,)
        return embedding, head_logits(self.head, embedding, self.l2_normalize)


def write_onnx(extractor: Extractor, path: Path) -> float:
    """Write an ONNX file and check it with ONNX Runtime on batches of 1, 3 and 17 random images.

    Input ``pixel_values`` float32 (batch, 3, h, w), preprocessed; outputs ``embedding`` (batch, D) and, if there is a
    head, ``logits`` (batch, classes). The metadata holds the constants of the preprocessing and the class names as
    JSON. Above 2 GB the weights are in a second file, ``model.onnx.data``.

    Args:
        extractor: the extractor.
        path: the file, in a directory that is written atomically.

    Returns:
        The largest absolute difference to PyTorch.

    Raises:
        UserError: a library is missing, an operation has no ONNX form, or the outputs differ by more than
            1e-4 (relative to the largest value if that exceeds 1) or in their top class.
    """
    require_onnx()
    graph = Graph(extractor).eval()
    with plain_attention(graph):
        try:
            program: Any = torch.onnx.export(
                graph,
                (noise(extractor, 2),),
                input_names=["pixel_values"],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # an operation without ONNX form may raise anything
            raise UserError(
                f"{extractor.name} cannot become ONNX: {first_line(error.__cause__ or error)}; export it without `onnx`"
            ) from error
    name_outputs(program.model.graph)
    program.model.metadata_props.update(metadata(extractor))
    weights = sum(tensor.nbytes for tensor in graph.state_dict().values())
    program.save(path, external_data=weights > PROTOBUF_BYTES)
    return largest_difference(extractor, graph, path)


def name_outputs(graph: Any) -> None:
    """Name the outputs ``embedding`` and ``logits``, and nothing else in the graph.

    The exporter names values after their operators: CLIP's table of positions is an ``embedding``, too.

    Args:
        graph: a graph of onnx_ir.
    """
    for value in [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        if value.name in OUTPUTS:
            value.name = f"{value.name}/operator"  # no operator of PyTorch has a slash in its name
    for value, name in zip(graph.outputs, OUTPUTS, strict=False):
        value.name = name


def noise(extractor: Extractor, images: int) -> Tensor:
    """Return random pixels, preprocessed: float32 (B, 3, h, w) on the extractor's device."""
    generator = torch.Generator().manual_seed(images)
    size = (images, 3, *extractor.preprocessing.image_size)
    pixels = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    return network_input(extractor.backbone, extractor.preprocessing, pixels)


def metadata(extractor: Extractor) -> dict[str, str]:
    """Return the preprocessing, ``class_names``, ``pooling``, ``weights_sha256`` and the version, as text or JSON."""
    fields = {
        **extractor.preprocessing.to_dict(),
        **pretrained.problem_type(extractor),
        "class_names": extractor.class_names,
        "backbone": model_card.short(extractor.name),
        "pooling": extractor.pooling,
        "weights_sha256": extractor.weights_sha256(),
        "transferkit": transferkit.__version__,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


@torch.no_grad()
def largest_difference(extractor: Extractor, graph: Graph, path: Path) -> float:
    """Run ONNX Runtime and PyTorch on the same pixels and return the largest absolute difference.

    Raises:
        UserError: the file is not valid, cannot be run, or gives other numbers.
    """
    import onnx
    import onnxruntime

    batches = {images: noise(extractor, images) for images in BATCHES}
    try:
        onnx.checker.check_model(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = {n: session.run(None, {"pixel_values": each.cpu().numpy()}) for n, each in batches.items()}
    except Exception as error:  # both may raise anything for a faulty file
        raise UserError(
            f"{extractor.name} as ONNX cannot be run: {first_line(error)}; export it without `onnx`"
        ) from error
    largest = 0.0
    for images, pixels in batches.items():
        theirs = outputs[images]
        for name, ours, array in zip(OUTPUTS, graph(pixels), theirs, strict=False):
            ours, other = ours.cpu(), torch.from_numpy(array)
            difference = float((ours - other).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):  # nor NaN
                raise UserError(
                    f"{extractor.name} as ONNX gives another {name} (difference {difference:.1e}, {images} images); "
                    "export it without `onnx`"
                )
            if name == "logits" and not torch.equal(ours.argmax(1), other.argmax(1)):
                raise UserError(f"{extractor.name} as ONNX gives another top class; export it without `onnx`")
            largest = max(largest, difference)
    return largest
