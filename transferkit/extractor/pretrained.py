"""The extractor directory, which transformers or torchvision load without transferkit."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from transferkit import backbones
from transferkit.backbones import from_transformers
from transferkit.backbones.dual_model import Projected
from transferkit.backbones.from_timm import TimmBackbone
from transferkit.backbones.from_torchvision import TorchvisionBackbone
from transferkit.backbones.hub import quiet
from transferkit.backbones.loading import check_finite, load_state
from transferkit.backbones.weights import read_state_dict
from transferkit.errors import UserError, first_line
from transferkit.extractor import model_card
from transferkit.extractor.calibration import Calibration
from transferkit.extractor.checkpoint_reader import (
    BROKEN,
    TRAINING,
    change_preprocessing,
    check_format,
    check_training,
    format_of,
    linear,
)
from transferkit.extractor.core import RECORD, ExtractorCore
from transferkit.extractor.timm_layout import timm_layout
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime import json_files
from transferkit.runtime.files import atomic_path, check_place
from transferkit.runtime.json_files import write_json
from transferkit.runtime.versions import versions

log = logging.getLogger(__name__)

FORMAT = 1
# Keys of a config.json that are never written and that transformers would follow: code, and unlimited memory.
FOREIGN = ("auto_map", "custom_pipelines", "num_labels", "attn_implementation", "_attn_implementation")


def write(extractor: ExtractorCore, path: Path, overwrite: bool) -> None:
    """Write the directory atomically; see :meth:`Extractor.save_pretrained`."""
    with replacing(path, overwrite) as folder:
        model_card.write(extractor, fill(extractor, folder), folder)


@contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory that replaces ``path`` on success.

    Raises:
        UserError: the place is not to be written over, or cannot be written.
    """
    check_export_place(path, overwrite)
    with atomic_path(path, folder=True) as temporary:
        try:
            yield temporary
        except SafetensorError as error:  # for example, a full disk
            raise UserError(f"cannot write {path}: {first_line(error)}; free disk space") from error


def check_export_place(path: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier export, and over that only with ``overwrite``.

    Raises:
        UserError: the place is not to be written over.
    """
    check_place(path, "an export", lambda place: None if (place / RECORD).is_file() else f"no {RECORD}", overwrite)


def fill(extractor: ExtractorCore, folder: Path) -> str:
    """Write model, preprocessing and record; return the layout, see :func:`write_model`."""
    layout = write_model(extractor, folder)
    write_json(folder / "preprocessor_config.json", extractor.preprocessing.to_hf())
    record = {
        "format": format_of(extractor.record),
        "layout": layout,
        "backbone": extractor.spec(),
        "pooling": extractor.pooling,
        "embed_dim": extractor.embed_dim,
        "class_names": extractor.class_names,
        "l2_normalize": extractor.l2_normalize,
        "weights_sha256": extractor.weights_sha256(),
        "versions": versions(),
        "training": {key: extractor.record[key] for key in TRAINING if extractor.record.get(key) is not None},
    }
    write_json(folder / RECORD, record)
    if extractor.calibration:
        extractor.calibration.save(folder)
    for path in folder.glob("*.safetensors"):  # safetensors makes them readable by the owner only
        path.chmod((folder / RECORD).stat().st_mode)
    return layout


def write_model(extractor: ExtractorCore, path: Path) -> str:
    """Write ``config.json``, ``model.safetensors``, and ``head.safetensors`` if the former cannot hold the head.

    Returns:
        The layout: ``classifier`` if ``model.safetensors`` has the head as its classifier, otherwise ``base``.
    """
    backbone, head = extractor.backbone, extractor.head
    if isinstance(backbone, TorchvisionBackbone):
        holds_head = write_torchvision(extractor, backbone, path)
    elif isinstance(backbone, TimmBackbone):
        config, state, holds_head = timm_layout(extractor, backbone)
        write_json(path / "config.json", config)
        save_file(state, path / "model.safetensors", {"format": "pt"})
    else:
        classifier = as_classifier(extractor) if head else None
        model: Any = classifier or backbone.model
        with quiet():
            model.save_pretrained(path)
        if backbone.wordless is None:
            keep_words(extractor, path)
        config = read_json(path / "config.json")  # the Hub's may name code, which does not belong in an export
        write_json(path / "config.json", {key: value for key, value in config.items() if key not in FOREIGN})
        holds_head = classifier is not None
    if head and not holds_head:
        state = {"weight": head.weight.detach().contiguous(), "bias": head.bias.detach().contiguous()}
        save_file(state, path / "head.safetensors", {"format": "pt"})
    return "classifier" if holds_head else "base"


def keep_words(extractor: ExtractorCore, path: Path) -> None:
    """Write text tower and tokenizer, so that the export can be asked by words; or say why it cannot.

    The directory is then that of the whole model of images and texts.
    """
    model: Any = extractor.backbone.model
    reason = 'it holds the pooled output alone, not the whole model; give `pooling="projection"`'
    if isinstance(model, Projected):
        try:
            extractor.text.add_to(path, model.state_dict())
            return
        except UserError as error:
            reason = str(error)
    log.warning("the export cannot be asked by words: %s", reason)


def write_torchvision(extractor: ExtractorCore, backbone: TorchvisionBackbone, path: Path) -> bool:
    """Write ``model.safetensors`` for ``torchvision.models.NAME(num_classes=N)``.

    With pooling ``logits`` the model keeps its own last layer. SqueezeNet's is followed by a ReLU and MaxViT's has
    no bias, so neither can be the head.

    Returns:
        Whether the head is the model's last layer.
    """
    head, last = extractor.head, backbone.last_layer
    state = {key: tensor.contiguous() for key, tensor in backbone.model.state_dict().items()}
    architecture = dict(backbone.architecture)
    holds_head = backbone.pooling == "avg" and not extractor.l2_normalize and backbone.ends_linear
    if head and holds_head:
        state |= {f"{last}.weight": head.weight.detach(), f"{last}.bias": head.bias.detach()}
        architecture["num_classes"] = head.out_features
    save_file(state, path / "model.safetensors", {"format": "pt"})
    config = {"architecture": backbone.name, "library": "torchvision", "arguments": architecture}
    labels = {str(index): name for index, name in enumerate(extractor.class_names)}
    write_json(path / "config.json", config | {"id2label": labels} | problem_type(extractor))
    return head is not None and holds_head


PROBLEM_TYPES = {"labels": "multi_label_classification", "number": "regression"}


def problem_type(extractor: ExtractorCore) -> dict[str, str]:
    """Return the field by which transformers chooses a loss; none for classes."""
    target = extractor.record.get("target")
    return {"problem_type": PROBLEM_TYPES[target]} if target in PROBLEM_TYPES else {}


@torch.no_grad()
def as_classifier(extractor: ExtractorCore) -> Any:
    """Return transformers' ``ForImageClassification`` with these weights, or None if its logits would differ.

    Whether the architecture's own classifier reads the same pooling is tried on random pixels.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    base: Any = extractor.backbone.model
    head, names = extractor.head, extractor.class_names
    kinds: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if type(base.config) not in kinds or head is None or extractor.l2_normalize:
        return None
    kind = kinds[type(base.config)]
    config = type(base.config).from_dict(base.config.to_dict())
    config.num_labels = head.out_features
    config.problem_type = problem_type(extractor).get("problem_type", config.problem_type)
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    written = {key: value for key, value in config.to_dict().items() if key not in FOREIGN}
    if type(config).from_dict(written).num_labels != head.out_features:  # PVT's does not count its labels
        return None
    model = (kind[0] if isinstance(kind, list | tuple) else kind)(config).eval().to(extractor.device)
    layer = getattr(model, "classifier", None)
    layer = layer[-1] if isinstance(layer, nn.Sequential) else layer  # ResNet's flattens first
    inner = getattr(model, model.base_model_prefix, None)
    if not isinstance(layer, nn.Linear) or layer.weight.shape != head.weight.shape or inner is None:
        return None
    outcome = inner.load_state_dict(base.state_dict(), strict=False)
    if outcome.missing_keys or outcome.unexpected_keys:
        return None
    layer.load_state_dict(head.state_dict())
    noise = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, *extractor.preprocessing.image_size, generator=noise).to(extractor.device)
    try:
        theirs = model(pixel_values=pixels).logits
    except (TypeError, ValueError):  # made for another image size
        return None
    ours = extractor.classify(extractor.backbone(pixels))
    return model if torch.allclose(theirs, ours, atol=1e-5, rtol=1e-4) else None


def read(path: Path, weights: str, pooling: str | None, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an Extractor from a directory that :func:`write` wrote.

    Raises:
        UserError: a file is missing or broken, or the record contradicts the arguments.
    """
    record = read_json(path / RECORD)
    check_format(path, record)
    if weights != "DEFAULT":
        raise UserError(f'{path} has its own weights; leave out `weights="{weights}"`')
    try:
        if pooling not in (None, record["pooling"]):
            raise UserError(
                f'{path} was exported with pooling {record["pooling"]}, not {pooling}; leave out `pooling="{pooling}"`'
            )
        check_training(record["training"])
        backbone, head = read_model(path, record)
        backbone.preprocessing = Preprocessing.from_dict(record["backbone"]["preprocessing"])
        change_preprocessing(backbone, preprocessing)
        return {
            "backbone": backbone,
            "head": head,
            "class_names": record["class_names"],
            "l2_normalize": record["l2_normalize"],
            "record": record["training"] | {"weights_sha256": record["weights_sha256"]},
            "calibration": Calibration.load(path),
        }
    except BROKEN as error:
        lack = f"incomplete: no {error}" if isinstance(error, KeyError) else f"broken: {first_line(error)}"
        raise UserError(f"{path} is {lack}; export the extractor again") from error


def read_model(path: Path, record: dict[str, Any]) -> tuple[backbones.Backbone, nn.Linear | None]:
    """Read the backbone and the head of a directory.

    Raises:
        UserError: the weights do not fit the configuration, or it names code or other files.
        KeyError: the head or a part of the record is missing.
        ValueError: the head does not match the embedding and the classes.
    """
    spec, classifier = record["backbone"], record["layout"] == "classifier"
    backbone: Any  # of any library
    weights = path / "model.safetensors"
    if spec["source"] in ("torchvision", "timm"):
        backbone = backbones.rebuild(spec)
        place = str(backbone.last_layer if isinstance(backbone, TorchvisionBackbone) else backbone.classifier)
        state = read_state_dict(weights)
        inner = {k: v for k, v in state.items() if not (classifier and k.startswith(f"{place}."))}
        load_state(backbone.model, inner, weights)
    else:
        if found := [key for key in FOREIGN if key in read_json(path / "config.json")]:
            raise UserError(f"{path}/config.json has {found[0]}, which exports never have; export the extractor again")
        if not weights.is_file():  # transformers would look for others, even outside of the directory
            raise UserError(f"{weights} does not exist; export the extractor again")
        backbone = from_transformers.build(str(path), pooling=spec["pooling"])
        backbone.name = str(spec["name"])
        state = read_state_dict(weights) if classifier else {}
        own = [key for key in state if re.fullmatch(r"classifier(\.\d+)?\.weight", key)]
        place = own[0].removesuffix(".weight") if own else "classifier"
    if not classifier:
        if not (path / "head.safetensors").is_file():
            return backbone, None
        state, place = read_state_dict(path / "head.safetensors"), ""
    weight, bias = (state[f"{place}.{name}".removeprefix(".")] for name in ("weight", "bias"))
    check_finite(f"{path}'s head", {"weight": weight, "bias": bias})
    return backbone, linear(weight, bias, backbone.embed_dim, record["class_names"])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    try:
        return json_files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; export the extractor again") from error
