"""Networks in int8: each layer's weights and activations in 8 bits, in ranges measured on images of the user's own.

NNCF decides the ranges (post-training quantization) and writes them into the network's ONNX graph, as pairs of
QuantizeLinear and DequantizeLinear. That one file is kept in the cache, run by OpenVINO or ONNX Runtime, stored in an
index and exported. Normalization, softmax and what NNCF finds sensitive stay in float.
"""

import importlib
import importlib.util
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.errors import UserError, first_line
from transferkit.extractor.engine import OnnxRuntime, OpenVino, Run, write_graph
from transferkit.runtime.files import atomic_path, cache_dir

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same images give other ranges
LIBRARIES = ("nncf", "onnx", "onnxruntime", "onnxscript")  # that make a network in int8; to run it takes its engine
RECORD = "transferkit_int8"  # the key of the record in the file's metadata
LEAST_MEAN = 0.9  # a network whose embeddings turn further away is refused
BATCHES = (16, 1)  # sizes that OpenVINO's programs are made for


class Samples(NamedTuple):
    """Images that ranges are measured on.

    Attributes:
        sha256: over their content.
        read: decodes them: preprocessed uint8 pixels (N, 3, h, w).
    """

    sha256: str
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Quantization:
    """How a network becomes one in int8: by images, or it is one already, in a file.

    Attributes:
        samples: images to measure ranges on; ``None`` if ``file`` is there.
        space: SHA-256 of the space of the embeddings in float.
        file: the network in int8; by default in the cache.
        identity: of the network in ``file``, as its embeddings' space names it.
    """

    samples: Samples | None = None
    space: str = ""
    file: Path | None = None
    identity: str | None = None

    def of(self, weights_sha256: str, layer: str | None, features: str) -> "Quantization":
        """Return file and identity of the network with these weights, up to a layer."""
        if self.samples is None:
            return self
        facts = [self.space, weights_sha256, layer, features, self.samples.sha256, FORMAT, nncf_version()]
        identity = sha256(json.dumps(facts).encode()).hexdigest()
        return replace(self, file=int8_folder() / f"{identity}.onnx", identity=identity)


def int8_folder() -> Path:
    """Return the folder of the cache that holds networks in int8, as an absolute path."""
    return cache_dir().absolute() / "int8"


def nncf_version() -> str | None:
    """Return the version of NNCF, which decides the ranges; None if it is not installed."""
    try:
        return version("nncf")
    except PackageNotFoundError:
        return None


def compile_int8(
    graph: nn.Module, normalize: Callable[[Tensor], Tensor], quantization: Quantization, engine: str, name: str
) -> Run:
    """Return an engine's program for a network in int8, which is made now if the cache lacks it.

    Args:
        graph: one tensor in, one out, both with the batch in front; in eval mode, on the CPU, in float32.
        normalize: preprocessed uint8 pixels -> float32 input of the network.
        quantization: of this network, see :meth:`Quantization.of`.
        engine: ``openvino`` or ``onnx``.
        name: of the network, for messages.

    Raises:
        UserError: a library is missing, the network cannot be quantized, or it gives entirely other embeddings.
    """
    file = quantization.file
    assert file is not None
    if not file.is_file():
        if quantization.samples is None:
            raise UserError(f"{file} does not exist; index the images again with `overwrite=True`")
        make(graph, normalize, quantization.samples, file, name)
    elif quantization.samples:
        with suppress(OSError):  # of another user
            os.utime(file)  # the least recently used are removed first
    try:
        return load(file, engine)
    except Exception as error:  # engines may raise anything
        raise UserError(f'{engine} cannot run {name} in int8: {first_line(error)}; give `precision="32"`') from error


def make(graph: nn.Module, normalize: Callable[[Tensor], Tensor], samples: Samples, file: Path, name: str) -> None:
    """Quantize a network and write it, with its cosines to float32 on the samples.

    Raises:
        UserError: see :func:`compile_int8`.
    """
    require()
    inputs = normalize(samples.read())
    log.info("int8: measuring the ranges of %s on %d images", name, len(inputs))
    with torch.no_grad():
        right = torch.cat([graph(batch).flatten(1) for batch in torch.split(inputs, BATCHES[0])])
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "model.onnx"
            with torch.no_grad():
                write_graph(graph, inputs[:1].repeat(2, 1, 1, 1), plain)
            model = quantize(plain, inputs)
            found = OnnxRuntime(model.SerializeToString())(inputs)
    except Exception as error:  # exporters and NNCF may raise anything
        raise UserError(
            f'{name} cannot be computed in int8: {first_line(error.__cause__ or error)}; give `precision="32"`'
        ) from error
    cosine = F.cosine_similarity(found.flatten(1).double(), right.double())
    mean, least = float(cosine.mean()), float(cosine.min())
    if not mean >= LEAST_MEAN:
        raise UserError(
            f'{name} in int8 gives other embeddings (mean cosine {mean:.4f} to float32); give `precision="bf16"`'
        )
    log.info("int8: cosine to float32 on these images: mean %.4f, least %.4f", mean, least)
    keep_record(model, {"images": len(inputs), "cosine_mean": mean, "cosine_least": least})
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_bytes(model.SerializeToString())


def require() -> None:
    """Raise if a library that makes networks in int8 is not installed.

    Raises:
        UserError: such a library; with the command that installs it.
    """
    absent = next((name for name in LIBRARIES if importlib.util.find_spec(name) is None), None)
    if absent:
        raise UserError(f"`precision=\"int8\"` needs {absent}, which is not installed: pip install 'transferkit[int8]'")


def quantize(file: Path, inputs: Tensor, floats: Sequence[str] = ()) -> Any:
    """Return a network in int8 as an ONNX model.

    Args:
        file: the network in float32 as ONNX.
        inputs: normalized pixels to measure ranges on, float32 (N, 3, h, w).
        floats: names of nodes that stay in float.
    """
    import onnx

    nncf, model = import_nncf(), onnx.load(file)
    names = [each.name for each in model.graph.input]
    data = nncf.Dataset([{names[0]: image[None].numpy()} for image in inputs])
    attends = any(node.op_type == "Softmax" for node in model.graph.node)
    with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):  # its progress
        return nncf.quantize(
            model,
            data,
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED if attends else nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
            ignored_scope=nncf.IgnoredScope(names=list(floats)) if floats else None,
        )


def import_nncf() -> Any:
    """Import NNCF without its telemetry, as OpenVINO; its messages go the way of all, not to stdout."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "cannot be imported"
    with redirect_stdout(sys.stderr):
        nncf = importlib.import_module("nncf")
    logger = logging.getLogger("nncf")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    return nncf


def keep_record(model: Any, record: dict[str, Any]) -> None:
    """Write a record into the metadata of an ONNX model."""
    entry = model.metadata_props.add()
    entry.key, entry.value = RECORD, json.dumps(record)


def load(file: Path, engine: str) -> Run:
    """Return an engine's program of a network in int8."""
    return OnnxRuntime(file) if engine == "onnx" else FixedBatches(file)


class FixedBatches:
    """Programs of OpenVINO for batches of fixed sizes: for any size, 2026.4 computes convolutions in int8 wrongly.

    Args:
        file: ONNX file of a network in int8.
    """

    def __init__(self, file: Path) -> None:
        self.programs = {size: OpenVino(file, "int8", size) for size in BATCHES}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Run one batch: float32 (B, 3, h, w) -> float32 (B, ...)."""
        parts, start = [], 0
        for size, run in self.programs.items():
            while start + size <= len(pixels):
                parts.append(run(pixels[start : start + size]))
                start += size
        return torch.cat(parts)
