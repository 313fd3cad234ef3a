"""The forward pass in int8 on tensors in memory, and how near it stays.

Against our own bfloat16 as it was when the target was set, with PyTorch's own linear layers, and as it is; against
float32; and against what NNCF and OpenVINO make of the same network in OpenVINO's own format.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.inputs import Network, photographs, resnet, vit_small, workplace
from tests.bench.row_engine import unpacked
from tests.bench.timing import Row, measured
from transferkit.data.image_table import open_images
from transferkit.embed.samples import quantization_of
from transferkit.extractor import Extractor
from transferkit.extractor.engine import missing, openvino_core, write_graph
from transferkit.extractor.forward import Forward, Graph
from transferkit.extractor.quantization import Quantization, import_nncf, nncf_version
from transferkit.similarity.compare import knn_overlap

BATCH = 16
TARGETS = {resnet: (2.3, 0.9990), vit_small: (2.0, 0.9980)}  # of the ratio to bfloat16, and of the mean cosine
COUNT = 128


def rows(full: bool) -> Iterator[Row]:
    """Yield four rows per network. Ranges are measured on 64 images of train."""
    for make, (faster, near) in TARGETS.items():
        with workplace() as place:
            network, folder = make(place), photographs(place, None if full else COUNT)
            if missing("openvino") or nncf_version() is None:
                note = "the extra int8 is not installed"
                yield Row(f"{network.name}, int8", "bfloat16", "faster", faster, [], [], note=note)
            else:
                yield from measure(network, folder, faster, near)


def measure(network: Network, folder: Path, faster: float, near: float) -> Iterator[Row]:
    """One core each, as in `embed`; compared on images of val, which no range was measured on."""
    extractor, table = network.extractor(), open_images(folder)
    val = [row for row, split in enumerate(table.splits) if split == "val"]
    val = val[: max(1, len(val) // BATCH) * BATCH]  # whole batches, which the program of OpenVINO's own format is for
    pixels = torch.stack([extractor.preprocessing.resize_crop(table.read(row)) for row in val])
    quantization = quantization_of(extractor, table)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        int8 = extractor.run_with("openvino", "int8", quantization).forward()
        plain = extractor.run_with("torch").forward()
        found, right = run(int8, pixels), run(plain, pixels)
        cosine = torch.cosine_similarity(found, right)
        shared = knn_overlap(found, right, 10)
        conditions = {
            f"cosine to float32 {cosine.mean():.4f} ≥ {near:.4f}, least {cosine.min():.4f}": float(cosine.mean())
            >= near,
            f"neighbors shared at 10: {shared:.3f} ≥ 0.9": shared >= 0.9,
        }
        own = openvino_int8(extractor, plain, quantization)
        others: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
            "bfloat16, linear layers by PyTorch": (unpacked(network, "bf16"), faster),
            "bfloat16": (extractor.forward("bf16"), 1.0),
            "float32": (plain, 1.0),
            "NNCF on OpenVINO's own format": (own, 0.92),
        }
        for against, (other, target) in others.items():
            run(other, pixels[:BATCH])  # the other one is warm
            yield measured(
                f"{network.name}, int8", against, "faster", target, lambda: run(int8, pixels),
                lambda other=other: run(other, pixels), conditions, f"{len(pixels)} images, one core",  # type: ignore[misc]
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def openvino_int8(extractor: Extractor, forward: Forward, quantization: Quantization) -> Callable[[Tensor], Tensor]:
    """Return OpenVINO's program of the network that NNCF has quantized in OpenVINO's own format, for one batch size."""
    assert quantization.samples is not None
    nncf, core, normalize = import_nncf(), openvino_core(), extractor.preprocessing.normalize
    inputs = normalize(quantization.samples.read())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        graph = Graph(forward, extractor.backbone).eval()
        write_graph(graph, inputs[:2], Path(folder) / "model.onnx")
        model = core.read_model(str(Path(folder) / "model.onnx"))
        attends = "Softmax" in {node.get_type_name() for node in model.get_ops()}
        model = nncf.quantize(
            model, nncf.Dataset([{0: image[None].numpy()} for image in inputs]), subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED if attends else nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )  # fmt: skip
        model.reshape([BATCH, *inputs.shape[1:]])
        options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
        request = core.compile_model(model, "CPU", options).create_infer_request()

    def program(pixels: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: normalize(pixels).numpy()}, share_inputs=True)[0].copy())

    return program


def run(forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Embed in the usual batches."""
    return torch.cat([forward(part) for part in pixels.split(BATCH)])
