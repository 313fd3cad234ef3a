"""The extractor directory: a layout that transformers and torchvision load without transferkit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from transferkit import backbones
from transferkit.backbones.weights import first_line, read_state_dict
from transferkit.errors import UserError
from transferkit.extractor.checkpoint import linear
from transferkit.versions import versions
from transferkit.files import atomic_path, discard
from transferkit.preprocessing import Preprocessing

if TYPE_CHECKING:
    from transferkit.extractor.extractor import Extractor

RECORD = "transferkit.json"
FORMAT = 1


def write(extractor: "Extractor", path: Path, overwrite: bool) -> None:
    """Write the directory, whole or not at all; see :meth:`Extractor.save_pretrained`."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another directory or add --overwrite")
    source = extractor.backbone.spec()["source"]
    record = {
        "format": FORMAT,
        "backbone": extractor.spec(),
        "pooling": extractor.pooling,
        "embed_dim": extractor.embed_dim,
        "class_names": extractor.class_names,
        "l2_normalize": extractor.l2_normalize,
        "weights_sha256": extractor.weights_sha256(),
        "versions": versions(),
        "training": {k: v for k, v in extractor.record.items() if k in ("regime", "class_counts", "metrics", "weights")},
    }
    with atomic_path(path) as temporary:
        temporary.mkdir()
        writer = write_transformers if source == "transformers" else write_torchvision
        record["layout"] = writer(extractor, temporary)
        write_json(temporary / "preprocessor_config.json", extractor.preprocessing.to_hf())
        write_json(temporary / RECORD, record)
        if path.exists():
            path.rename(path.with_name(f".{path.name}.old"))
    discard(path.with_name(f".{path.name}.old"))


def write_torchvision(extractor: "Extractor", path: Path) -> str:
    """``model.safetensors`` for ``torchvision.models.NAME(num_classes=N)``; the head is its last layer.

    With pooling ``logits`` the model keeps its own last layer and the head goes to ``head.safetensors``.
    """
    backbone = extractor.backbone
    state = {key: tensor.contiguous() for key, tensor in backbone.model.state_dict().items()}
    head = extractor.head
    architecture = dict(backbone.spec()["architecture"])
    layout = "base"
    if head and backbone.pooling == "avg" and not extractor.l2_normalize:
        reference = backbones.from_torchvision.make_model(backbone.name, architecture)
        last = reference.get_submodule(backbone.last_layer)
        shape = (head.weight.shape[0], *last.weight.shape[1:])  # SqueezeNet's last layer is a 1x1 convolution
        state[f"{backbone.last_layer}.weight"] = head.weight.detach().reshape(shape)
        state[f"{backbone.last_layer}.bias"] = head.bias.detach()
        architecture["num_classes"] = head.weight.shape[0]
        layout = "classifier"
    elif head:
        write_head(head, path)
    save_file(state, path / "model.safetensors", {"format": "pt"})
    config = {"architecture": backbone.name, "library": "torchvision", "arguments": architecture}
    labels = {str(index): name for index, name in enumerate(extractor.class_names)}
    write_json(path / "config.json", config | {"id2label": labels})
    return layout


def write_transformers(extractor: "Extractor", path: Path) -> str:
    """The architecture's own ``ForImageClassification`` layout if its classifier computes what our head does, else the base's."""
    classifier = as_classifier(extractor) if extractor.head else None
    model = classifier or extractor.backbone.model
    model.save_pretrained(path, safe_serialization=True)
    if classifier:
        return "classifier"
    if extractor.head:
        write_head(extractor.head, path)
    return "base"


@torch.inference_mode()
def as_classifier(extractor: "Extractor") -> nn.Module | None:
    """transformers' classification model with our weights, or None where it would answer differently.

    Whether the architecture's own classifier reads the same pooling is not looked up but tried, on random pixels.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    base, head = extractor.backbone.model, extractor.head
    kind = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(base.config), None)
    if kind is None or head is None or extractor.l2_normalize:
        return None
    names = extractor.class_names
    config = type(base.config).from_dict(base.config.to_dict())
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    model = kind(config).eval()
    layer = getattr(model, "classifier", None)
    inner = getattr(model, model.base_model_prefix, None)
    if not isinstance(layer, nn.Linear) or layer.weight.shape != head.weight.shape or inner is None:
        return None
    outcome = inner.load_state_dict(base.state_dict(), strict=False)
    if outcome.missing_keys or outcome.unexpected_keys:
        return None
    layer.load_state_dict(head.state_dict())
    pixels = torch.rand(2, 3, *extractor.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
    theirs = model(pixel_values=pixels).logits
    ours = head(extractor.backbone.cpu()(pixels))
    return model if torch.allclose(theirs, ours, atol=1e-5, rtol=1e-4) else None


def read(path: Path, weights: str, pooling: str | None) -> dict[str, Any]:
    """Arguments of an Extractor, from a directory that :func:`write` made.

    Raises:
        UserError: broken files, or options that contradict them.
    """
    record = read_json(path / RECORD)
    if record.get("format") != FORMAT:
        raise UserError(f"{path} has format {record.get('format')}, this version reads {FORMAT}; update transferkit")
    if weights != "DEFAULT":
        raise UserError(f"{path} brings its own weights; leave out --model.weights {weights}")
    if pooling not in (None, record["pooling"]):
        raise UserError(f"{path} was exported with pooling {record['pooling']}, not {pooling}")
    head = None
    if record["backbone"]["source"] == "transformers":
        built = backbones.from_transformers.build(str(path), "DEFAULT", record["pooling"])
        state = read_state_dict(path / "model.safetensors") if record["layout"] == "classifier" else {}
        if state:
            head = linear(state["classifier.weight"], state["classifier.bias"])
        backbone: backbones.Backbone = built
    else:
        backbone = backbones.rebuild(record["backbone"])
        state = read_state_dict(path / "model.safetensors")
        if record["layout"] == "classifier":
            last = backbone.last_layer
            weight = state.pop(f"{last}.weight")
            head = linear(weight.flatten(1), state.pop(f"{last}.bias"))
        try:
            backbone.model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path / 'model.safetensors'} does not fit config.json: {first_line(error)}") from error
    if (path / "head.safetensors").is_file():
        tensors = load_file(path / "head.safetensors")
        head = linear(tensors["weight"], tensors["bias"])
    return {
        "backbone": backbone,
        "preprocessing": Preprocessing.from_dict(record["backbone"]["preprocessing"]),
        "head": head,
        "class_names": record["class_names"],
        "l2_normalize": record["l2_normalize"],
        "record": record["training"] | {"weights_sha256": record["weights_sha256"]},
    }


def write_head(head: nn.Linear, path: Path) -> None:
    """``head.safetensors``: weight (classes, D) and bias (classes,)."""
    state = {"weight": head.weight.detach().contiguous(), "bias": head.bias.detach().contiguous()}
    save_file(state, path / "head.safetensors", {"format": "pt"})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: not readable, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; export the extractor again")
    return content
