"""OpenVINO's files of an exported network, made from its ONNX file and checked against it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from transferkit.errors import UserError, first_line
from transferkit.extractor.engine import import_openvino, missing, openvino_core
from transferkit.extractor.int8_export import outputs_of

FILES = ("model.xml", "model.bin")
TOLERANCE = 1e-4  # of the largest difference in float32; relative where values exceed 1
COSINE = 0.99  # in int8, where each engine rounds in its own way


def require_openvino() -> None:
    """Raise if a library for OpenVINO's files is not installed.

    Raises:
        UserError: such a library; with the command that installs it.
    """
    for extra in ("openvino", "onnx"):
        if absent := missing(extra):
            raise UserError(f"`openvino` needs {absent}, which is not installed: pip install 'transferkit[{extra}]'")


def write_openvino(onnx: Path, folder: Path, inputs: Tensor, facts: Mapping[str, str], int8: bool, name: str) -> float:
    """Write ``model.xml`` and ``model.bin``, and check them against ONNX Runtime.

    In float32 they take any number of images, in int8 one: for any number, OpenVINO 2026.4 computes convolutions in
    int8 wrongly.

    Args:
        onnx: the ONNX file.
        folder: where to write.
        inputs: normalized pixels to check with, float32 (B, 3, h, w).
        facts: what the files are to say of themselves.
        int8: whether the ONNX file is in int8.
        name: of the network, for messages.

    Returns:
        The largest absolute difference of an output.

    Raises:
        UserError: OpenVINO cannot run the network, or gives other numbers.
    """
    openvino = import_openvino()
    try:
        core = openvino_core()
        model = core.read_model(str(onnx))
        if int8:
            model.reshape([1, *inputs.shape[1:]])
        for key, value in facts.items():
            model.set_rt_info(value, ["transferkit", key])
        openvino.save_model(model, str(folder / FILES[0]), compress_to_fp16=False)
        request = core.compile_model(
            str(folder / FILES[0]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        ).create_infer_request()
        parts = [request.infer({0: batch.numpy()}) for batch in torch.split(inputs, 1 if int8 else len(inputs))]
        found = [torch.cat([torch.from_numpy(part[at].copy()) for part in parts]) for at in range(len(model.outputs))]
    except Exception as error:  # OpenVINO may raise anything
        raise UserError(f"OpenVINO cannot run {name}: {first_line(error)}; export it without `openvino`") from error
    right = list(outputs_of(onnx, inputs).values())
    differences = [float((one - other).abs().max()) for one, other in zip(found, right, strict=True)]
    scales = [max(1.0, float(each.abs().max())) for each in right]
    cosine = float(F.cosine_similarity(found[0].double(), right[0].double()).min())
    near = all(one <= TOLERANCE * scale for one, scale in zip(differences, scales, strict=True))
    if not (cosine >= COSINE if int8 else near):
        raise UserError(
            f"{name} in OpenVINO gives other embeddings (cosine {cosine:.4f}, difference {max(differences):.1e}); "
            "export it without `openvino`"
        )
    return max(differences)
