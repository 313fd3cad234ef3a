"""Engines: what runs the network. PyTorch itself, or OpenVINO or ONNX Runtime, which are faster on some processors.

An engine gets the graph and its weights as ONNX. In float32 its embeddings equal PyTorch's to 1e-5 of their length,
in bfloat16 they have a cosine of at least 0.999 with them: a network for which this does not hold on two images of
noise is refused.
"""

import importlib
import importlib.util
import logging
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.errors import UserError, first_line
from transferkit.runtime.cores import cores

log = logging.getLogger(__name__)

Engine = Literal["torch", "openvino", "onnx"]
Choice = Literal["torch", "openvino", "onnx", "auto"]
Run = Callable[[Tensor], Tensor]

LIBRARIES = {"openvino": ("openvino", "onnx", "onnxscript"), "onnx": ("onnx", "onnxruntime", "onnxscript")}
BATCHES: Any = ({0: torch.export.Dim.DYNAMIC},)  # any number of images
RELATIVE, COSINE = 1e-5, 0.999  # tolerances in float32 and in lower precision


def choose_engine(wanted: Choice, device: torch.device, precision: str) -> Engine:
    """Return the engine to use; if it is not the one wanted, one line says why.

    Args:
        wanted: ``auto`` is openvino on a CPU if it is installed, otherwise torch.
        device: of the network.
        precision: of the forward pass.

    Raises:
        UserError: nothing can compute in int8.
    """
    if precision == "int8":
        return choose_for_int8(wanted, device)
    if wanted == "auto":
        return "openvino" if device.type == "cpu" and not missing("openvino") else "torch"
    if wanted == "torch":
        return wanted
    reason = None
    if absent := missing(wanted):
        reason = f"{absent} is not installed (pip install 'transferkit[{wanted}]')"
    elif device.type != "cpu":
        reason = f"{wanted} runs networks on a CPU, not on {device.type}"
    elif wanted == "onnx" and precision != "32":
        reason = f"ONNX Runtime computes in float32, not in {precision}"
    if reason is None:
        return wanted
    log.warning("%s: PyTorch runs the network instead", reason)
    return "torch"


def choose_for_int8(wanted: Choice, device: torch.device) -> Engine:
    """Return the engine for a network in int8, of which PyTorch is none.

    Raises:
        UserError: there is none.
    """
    if device.type != "cpu":
        raise UserError(
            f'int8 is computed on a CPU, not on {device.type}; give `accelerator="cpu"`, or another precision'
        )
    if wanted == "torch":
        raise UserError('PyTorch does not compute in int8; give `engine="openvino"`, or another precision')
    engine: Engine = "onnx" if wanted == "onnx" else "openvino"
    if absent := missing(engine):
        raise UserError(f"int8 needs {absent}, which is not installed: pip install 'transferkit[int8]'")
    return engine


def missing(engine: str) -> str | None:
    """Return the first library of an engine that is not installed."""
    return next((name for name in LIBRARIES[engine] if importlib.util.find_spec(name) is None), None)


def compile_graph(graph: nn.Module, example: Tensor, engine: str, precision: str, name: str) -> Run:
    """Return an engine's program for a network; several threads may call it at once.

    Args:
        graph: one tensor in, one out, both with the batch in front; in eval mode, on the CPU, in float32.
        example: two inputs, float32 (2, 3, h, w).
        engine: ``openvino`` or ``onnx``.
        precision: of the engine's arithmetic.
        name: of the network, for messages.

    Raises:
        UserError: the engine cannot run the network, or gives other numbers.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model.onnx"
            write_graph(graph, example, path)
            run: Run = OpenVino(path, precision) if engine == "openvino" else OnnxRuntime(path)
            found, right = run(example), graph(example)
    except Exception as error:  # exporters and engines may raise anything
        reason = first_line(error.__cause__ or error)
        raise UserError(f'{engine} cannot run {name}: {reason}; give `engine="torch"`') from error
    if fault := difference(found, right, precision):
        raise UserError(f'{engine} gives other embeddings of {name} ({fault}); give `engine="torch"`')
    return run


def difference(found: Tensor, right: Tensor, precision: str) -> str | None:
    """Return how far outputs are from PyTorch's in float32, if that is beyond the tolerance of the precision."""
    found, right = found.flatten(1).double(), right.flatten(1).double()
    if precision == "32":
        relative = float(((found - right).norm(dim=1) / right.norm(dim=1).clamp_min(1e-12)).max())
        return None if relative <= RELATIVE else f"by {relative:.1e} of their length"
    cosine = float(F.cosine_similarity(found, right).min())
    return None if cosine >= COSINE else f"cosine {cosine:.4f}"


def write_graph(graph: nn.Module, example: Tensor, path: Path) -> None:
    """Write a graph as ONNX, for any number of images, with its weights in a second file: one has at most 2 GB."""
    with plain_attention(graph):
        program: Any = torch.onnx.export(graph, (example,), dynamic_shapes=BATCHES, dynamo=True, verbose=False)
    program.save(path, external_data=True)


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Use transformers' plain attention inside the block: the fused one fixes the batch size of some models."""
    model: Any = next((part for part in module.modules() if hasattr(part, "set_attn_implementation")), None)
    if model is None:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class OpenVino:
    """A program of OpenVINO: one core per call, so that results do not depend on the number of cores.

    Args:
        path: ONNX file.
        precision: ``32``, ``bf16`` or ``int8``, of a network whose layers are in int8 already.
        batch: number of images; by default any.
    """

    def __init__(self, path: Path, precision: str, batch: int | None = None) -> None:
        core = openvino_core()
        model = core.read_model(str(path))
        if batch:
            model.reshape([batch, *(dimension.get_length() for dimension in list(model.input().partial_shape)[1:])])
        self.compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                "NUM_STREAMS": cores(),
                "INFERENCE_NUM_THREADS": cores(),
                "ENABLE_CPU_PINNING": False,  # several processes would share a core
            },
        )
        self.local = threading.local()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Run one batch: float32 (B, 3, h, w) -> float32 (B, ...)."""
        if not hasattr(self.local, "request"):
            self.local.request = self.compiled.create_infer_request()
        outputs = self.local.request.infer({0: pixels.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(outputs[0].copy())


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports every import over the network unless it is not there."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "cannot be imported"
    return importlib.import_module("openvino")


@cache
def openvino_core() -> Any:
    """Return the core of OpenVINO that this process keeps to its end.

    The CPU plugin of every core sets a stack for signal handlers, and gives the one before it back when the core goes.
    Of two cores that overlap, the second gives back memory that the first has freed: the next signal, such as the end
    of a data worker, is then a segmentation fault (OpenVINO 2026.4). A core that stays is always the one before, for
    those that NNCF opens too.
    """
    core = import_openvino().Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core


class OnnxRuntime:
    """A program of ONNX Runtime: one core per call, so that results do not depend on the number of cores.

    Args:
        path: ONNX file, or its content.
    """

    def __init__(self, path: Path | bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, pixels: Tensor) -> Tensor:
        """Run one batch: float32 (B, 3, h, w) -> float32 (B, ...)."""
        return torch.from_numpy(self.session.run(None, {self.input: pixels.contiguous().numpy()})[0])
