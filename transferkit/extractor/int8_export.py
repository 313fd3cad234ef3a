"""An exported ONNX file in int8, what that costs, and which blocks stay in float for it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from transferkit.backbones import Backbone
from transferkit.errors import UserError, first_line
from transferkit.extractor.core import ExtractorCore
from transferkit.extractor.quantization import BATCHES, Samples, keep_record, quantize

log = logging.getLogger(__name__)

Outputs = Mapping[str, Tensor]
SCOPES = "pkg.torch.onnx.name_scopes"  # of the module that a node is from, as the exporter writes it
RANKING = 16  # images that blocks are ranked on


class Judge(NamedTuple):
    """Images that the loss is measured on.

    Attributes:
        pixels: preprocessed uint8 (N, 3, h, w).
        what: where they are from, for the model card.
        accuracy: share of them that outputs classify as labeled; ``None`` if they have no labels.
        classifier: what classifies.
    """

    pixels: Tensor
    what: str
    accuracy: Callable[[Outputs], float] | None = None
    classifier: str = ""


@dataclass(frozen=True)
class Loss:
    """What int8 costs, for the model card and the command's output.

    Attributes:
        calibration_images: number of images that ranges were measured on.
        measured_on: the images of the figures below.
        cosine_mean: mean cosine of an image's two embeddings.
        cosine_least: the least.
        classifier: what classified.
        accuracy_float: its share of right answers in float32, or None.
        accuracy_int8: in int8.
        kept_in_float: blocks that stay in float.
    """

    calibration_images: int
    measured_on: str
    cosine_mean: float
    cosine_least: float
    classifier: str
    accuracy_float: float | None
    accuracy_int8: float | None
    kept_in_float: Sequence[str]

    @property
    def drop(self) -> float:
        """Points of accuracy that are lost; 0 if it is not known."""
        if self.accuracy_float is None or self.accuracy_int8 is None:
            return 0.0
        return 100 * (self.accuracy_float - self.accuracy_int8)


class Attempt(NamedTuple):
    """A network in int8 as an ONNX model, and its loss."""

    model: Any
    loss: Loss


def write_int8(
    extractor: ExtractorCore, file: Path, samples: Samples, judge: Judge, max_drop: float | None = None
) -> Loss:
    """Replace an exported ONNX file by one in int8.

    All is in int8 at first. If that costs more than ``max_drop``, blocks are ranked by the error of the embeddings
    when each alone is in int8, and the worst are restored: half of them, then half as many more or fewer, until the
    smallest number that suffices is found.

    Args:
        extractor: what was exported.
        file: the file, in float32.
        samples: images to measure ranges on.
        judge: images to measure the loss on.
        max_drop: points of accuracy that may be lost; by default any.

    Raises:
        UserError: the network cannot be quantized, the images have no labels for ``max_drop``, or every block is needed
            in float.
    """
    if max_drop is not None and judge.accuracy is None:
        raise UserError("`max_drop` counts right answers; give `int8_images` with labels and a split val")
    normalize = extractor.preprocessing.normalize
    inputs, judged = normalize(samples.read()), normalize(judge.pixels)
    right = outputs_of(file, judged)

    def attempt(floats: Mapping[str, Sequence[str]]) -> Attempt:
        model = quantized(extractor, file, inputs, [node for nodes in floats.values() for node in nodes])
        loss = measure(right, outputs_of(model.SerializeToString(), judged), judge, len(inputs), list(floats))
        if floats:
            log.info("int8 but for %s: %s", ", ".join(floats), told(loss))
        return Attempt(model, loss)

    chosen = attempt({})
    if max_drop is not None and chosen.loss.drop > max_drop:
        log.info("all in int8: %s, more than %g points", told(chosen.loss), max_drop)
        blocks = blocks_of(file, extractor.backbone)
        some = inputs[:: max(1, len(inputs) // RANKING)][:RANKING]
        errors = {name: error_alone(extractor, file, some, blocks, name) for name in blocks}
        chosen = restore(attempt, blocks, sorted(blocks, key=lambda name: -errors[name]), max_drop, extractor.name)
    keep_record(chosen.model, vars(chosen.loss))
    file.write_bytes(chosen.model.SerializeToString())
    return chosen.loss


def restore(
    attempt: Callable[[Mapping[str, Sequence[str]]], Attempt],
    blocks: Mapping[str, Sequence[str]],
    ranked: Sequence[str],
    max_drop: float,
    name: str,
) -> Attempt:
    """Return the attempt with the fewest of the worst blocks in float that loses no more than allowed.

    Raises:
        UserError: all blocks but one do not suffice.
    """
    few, enough, chosen = 0, len(ranked), None
    while enough - few > 1:
        count = ceil((few + enough) / 2)
        tried = attempt({block: blocks[block] for block in ranked[:count]})
        if tried.loss.drop <= max_drop:
            enough, chosen = count, tried
        else:
            few = count
    if chosen is None:
        raise UserError(f"no block of {name} can be in int8 at `max_drop={max_drop:g}`; give more, or leave out `int8`")
    return chosen


def quantized(extractor: ExtractorCore, file: Path, inputs: Tensor, floats: Sequence[str]) -> Any:
    """Return the network in int8, with some nodes in float.

    Raises:
        UserError: NNCF cannot make it.
    """
    try:
        return quantize(file, inputs, floats)
    except Exception as error:  # of any kind
        raise UserError(f"{extractor.name} cannot become int8: {first_line(error)}; leave out `int8`") from error


def error_alone(
    extractor: ExtractorCore, file: Path, inputs: Tensor, blocks: Mapping[str, Sequence[str]], name: str
) -> float:
    """Return the mean squared error of embeddings, relative to their length, if one block alone is in int8."""
    others = [node for other, nodes in blocks.items() if other != name for node in nodes]
    model = quantized(extractor, file, inputs, others)
    right, found = (outputs_of(each, inputs)["embedding"] for each in (file, model.SerializeToString()))
    error = float((found - right).square().sum() / right.square().sum().clamp_min(1e-12))
    log.info("int8 in %s alone: relative squared error %.1e", name, error)
    return error


def blocks_of(file: Path, backbone: Backbone) -> dict[str, list[str]]:
    """Return block -> names of its nodes, in an ONNX file: the stages of the backbone, the head with the last."""
    import onnx

    names = backbone.stage_names
    found: dict[str, list[str]] = {}
    for node in onnx.load(file, load_external_data=False).graph.node:
        scopes = next((each.value for each in node.metadata_props if each.key == SCOPES), "")
        inside = [scope for scope in scopes.strip("[]").replace("'", "").split(", ") if scope]
        modules = [scope.removeprefix("backbone.model.") for scope in inside if scope.startswith("backbone.model.")]
        of_backbone = "backbone" in inside
        stage = names[max(map(backbone.stage_of, modules), default=0)] if of_backbone else names[-1]
        found.setdefault(stage, []).append(node.name)
    return {name: found[name] for name in names if name in found}


def measure(right: Outputs, found: Outputs, judge: Judge, calibration: int, floats: list[str]) -> Loss:
    """Compare outputs in int8 with those in float32."""
    cosine = F.cosine_similarity(found["embedding"].double(), right["embedding"].double())
    before, after = (judge.accuracy(each) if judge.accuracy else None for each in (right, found))
    return Loss(
        calibration, judge.what, float(cosine.mean()), float(cosine.min()), judge.classifier, before, after, floats
    )


def outputs_of(model: Path | bytes, inputs: Tensor) -> dict[str, Tensor]:
    """Run ONNX Runtime: normalized pixels (N, 3, h, w) -> each output (N, ...) by its name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, names = session.get_inputs()[0].name, [each.name for each in session.get_outputs()]
    parts = [session.run(None, {name: batch.contiguous().numpy()}) for batch in torch.split(inputs, BATCHES[0])]
    return {each: torch.cat([torch.from_numpy(part[at]) for part in parts]) for at, each in enumerate(names)}


def told(loss: Loss) -> str:
    """Return the figures of a loss in one line."""
    text = f"cosine to float32 {loss.cosine_mean:.4f}, least {loss.cosine_least:.4f}, on {loss.measured_on}"
    if loss.accuracy_float is None or loss.accuracy_int8 is None:
        return text
    values = f"{100 * loss.accuracy_float:.1f} % to {100 * loss.accuracy_int8:.1f} %"
    return f"{text}; accuracy of {loss.classifier} from {values}"
