"""Backbones from torchvision's classification models (He et al. 2015 for ResNet18, arXiv:1512.03385)."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from transferkit.backbones.base import Backbone, choose_pooling, leaf_types
from transferkit.backbones.loading import check_finite, load_state, own_names, without_heads
from transferkit.backbones.weights import read_state_dict
from transferkit.errors import UserError, first_line
from transferkit.images.preprocessing import Preprocessing, is_complete
from transferkit.runtime.reachability import require_network

log = logging.getLogger(__name__)

POOLINGS = ("avg", "logits")
INCEPTIONS = ("googlenet", "inception_v3")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads that those only train with
# A DenseNet's layers in torchvision's published files: norm.1.weight is now norm1.weight.
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def names() -> list[str]:
    """Return the names of torchvision's classification models."""
    return list(models.list_models(module=models))


class TorchvisionBackbone(Backbone):
    """A torchvision classification model up to its last layer.

    Pooling ``avg`` is what enters the last linear layer (ResNet18: the 512-d average of the last
    map); ``logits`` keeps that layer (ResNet18 with its ImageNet weights: 1000-d).

    Args:
        name: torchvision's name of the model.
        model: the model, its last layer in place.
        preprocessing: what the weights expect.
        pooling: ``avg`` (default) or ``logits``.
        architecture: arguments the model was built with, for :meth:`spec`.
    """

    poolings = POOLINGS

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocessing: Preprocessing,
        pooling: str | None = None,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = without_auxiliary_heads(model)
        self.preprocessing = preprocessing
        self.pooling = choose_pooling(name, pooling, self.poolings)
        self.architecture = dict(architecture or {})
        self.last_layer = last_layer(model)
        last = model.get_submodule(self.last_layer)
        self.ends_linear = isinstance(last, nn.Linear) and last.bias is not None  # as a head is: MaxViT's has no bias
        self.stages = find_stages(model, self.last_layer)
        if self.pooling == "avg":
            model.set_submodule(self.last_layer, nn.Identity())
        self.embed_dim = layer_width(last, self.pooling)
        if preprocessing.image_size != native_size(name):
            self.dry_run(self)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalized pixels: float (B, 3, H, W) -> (B, D)."""
        output: Tensor = self.model(pixels)
        return output.flatten(1)  # (B, D)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return what enters the global pooling, or a transformer's last tokens without the class token."""
        return self.forward_both(pixels)[0]

    def forward_both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the embedding, by one pass."""
        kept: list[Tensor] = []
        pool = [name for name in leaf_types(self.model, nn.AdaptiveAvgPool2d) if is_global_pool(name)]
        if pool:
            place = self.model.get_submodule(pool[-1])
            handle = place.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        else:  # pooled by a function, or a transformer: what the last part before the classifier gives
            head = self.last_layer.partition(".")[0]
            place = [child for name, child in self.model.named_children() if name != head][-1]
            handle = place.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            embedding = self(pixels)
        finally:
            handle.remove()
        features = kept[-1]
        if isinstance(self.model, models.DenseNet):  # its last activation is a function, too
            features = features.relu()
        # ViT: the class token comes first
        return features[:, 1:] if features.ndim == 3 else features, embedding

    def forward_stage(self, pixels: Tensor, stage: str) -> Tensor:
        """Return what a stage puts out: a map (B, C, h, w) or all tokens (B, T, C)."""
        output = super().forward_stage(pixels, stage)
        inner = stage != self.stage_names[-1]
        return output.movedim(-1, 1) if inner and isinstance(self.model, models.SwinTransformer) else output

    def spec(self) -> dict[str, Any]:
        """Return a plain-typed description, for :func:`rebuild`."""
        return self.describe("torchvision", self.architecture)


def build(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    architecture: dict[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> TorchvisionBackbone:
    """Build a torchvision backbone with its weights.

    Args:
        name: torchvision's name, such as ``resnet18``.
        weights: ``DEFAULT`` or another entry of the model's weights enum, ``none`` (random), or a
            path to a ``.safetensors`` file or state dict; one that torchvision published is known by its name.
        pooling: ``avg`` or ``logits``.
        architecture: arguments of the model's builder, with ``none`` only.
        preprocessing: fields that differ from the weights' own.

    Raises:
        UserError: the weights or arguments are unknown, a file does not fit, or a download fails.
    """
    if architecture and weights != "none":
        raise UserError(f'architecture changes of {name} need `weights="none"`; its weights fit only as it is')
    entries = models.get_model_weights(name)
    weights = weights.removeprefix(f"{entries.__name__}.")  # as torchvision's get_weight takes it
    entry = entries.__members__.get(weights) or published(name, weights)
    if entry is None and weights.isupper():  # no file is called so, and people type an entry of another model
        known = ", ".join(["DEFAULT", *(member for member in entries.__members__ if member != "DEFAULT")])
        raise UserError(f"{name} has no weights {weights!r}; it has {known}")
    scheme = Preprocessing.from_torchvision((entry or entries.DEFAULT).transforms())
    if weights == "none":
        arguments = dict(architecture or {})
        model = make_model(name, arguments)
    elif weights in entries.__members__:
        arguments = arguments_of(name, entries[weights])
        model = load_preset(name, entries[weights])
    else:
        model, arguments = load_tensors(
            name, read_state_dict(weights), weights, arguments_of(name, entry), keep_classifier=pooling == "logits"
        )
    if isinstance(model, models.VisionTransformer):  # takes the one size it was made for
        scheme = scheme.replace(image_size=model.image_size)
    scheme = scheme.override(preprocessing or {})
    if weights != "none" and entry is None and not is_complete(preprocessing or {}):
        log.warning(
            "%s is not named as a file that torchvision published: images are prepared as for %s, %s%s; "
            "`preprocessing` changes it",
            *(weights, entries.DEFAULT, scheme.in_words(), ", transform_input off" if name in INCEPTIONS else ""),
        )
    return TorchvisionBackbone(name, model, scheme, pooling, arguments)


def has_weights(name: str, entry: str) -> bool:
    """Return whether a model's published weights have an entry of that name."""
    return entry in models.get_model_weights(name).__members__


def published(name: str, weights: str) -> models.WeightsEnum | None:
    """Return the entry of a model's weights enum whose file this is, by the file's name."""
    entries = models.get_model_weights(name).__members__.values()
    return next((entry for entry in entries if Path(entry.url).name == Path(weights).name), None)


def arguments_of(name: str, entry: models.WeightsEnum | None) -> dict[str, Any]:
    """Return the arguments that torchvision builds a model with for published weights, besides their classes."""
    if entry is None:
        return {}
    if name in INCEPTIONS:
        return {"transform_input": True}
    return {"image_size": entry.meta["min_size"][0]} if name.startswith("vit_") else {}


def rebuild(spec: dict[str, Any]) -> TorchvisionBackbone:
    """Build the architecture that a :meth:`TorchvisionBackbone.spec` describes, with random weights."""
    model = make_model(spec["name"], spec["architecture"])
    scheme = Preprocessing.from_dict(spec["preprocessing"])
    return TorchvisionBackbone(spec["name"], model, scheme, spec["pooling"], spec["architecture"])


def make_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build torchvision's model of that name with random weights, in float32.

    Raises:
        UserError: the model does not take an argument.
    """
    extra = {"init_weights": True, "aux_logits": False} if name in INCEPTIONS else {}
    try:
        model: nn.Module = models.get_model(name, weights=None, **(extra | arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be built with {arguments}: {first_line(error)}") from error
    return model


def load_preset(name: str, entry: models.WeightsEnum) -> nn.Module:
    """Build torchvision's model with its own weights.

    Raises:
        UserError: the weights are not in the cache and cannot be downloaded, or are broken.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if cached.is_file():  # read here, since torchvision would run code in it
        state, skipped = read_state_dict(cached), {"init_weights": False} if name in INCEPTIONS else {}
        try:
            return load_tensors(name, state, cached, arguments_of(name, entry) | skipped, keep_classifier=True)[0]
        except UserError as error:
            check_finite(cached, state)  # of a whole file, which another download would give again
            raise unusable(name, cached, error) from error
    remedy = (
        f"put {cached.name} into TORCH_HOME's hub/checkpoints, give `weights=FILE`, "
        'or `weights="none"` for random weights'
    )
    require_network(entry.url, f"{name}'s {entry.name} weights", remedy)
    try:
        model: nn.Module = models.get_model(name, weights=entry)
    except (OSError, RuntimeError) as error:
        raise unusable(name, cached, error) from error
    check_finite(cached, model.state_dict())
    return model


def unusable(name: str, cached: Path, error: Exception) -> UserError:
    """Return the error for a downloaded file that does not fit its model."""
    return UserError(f"{name}'s weights in {cached} cannot be loaded: {first_line(error)}; remove it and try again")


def load_tensors(
    name: str, tensors: Mapping[str, Tensor], path: str | Path, arguments: dict[str, Any], keep_classifier: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Build torchvision's model with the tensors of a file; return it and the arguments that build it without them.

    A classifier of another size is dropped and logged, or the model built to fit it.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    auxiliary = tuple(f"{part}." for part in AUXILIARY)
    model = make_model(name, arguments)
    place = last_layer(model)
    own = model.state_dict()
    state = {OLD_DENSENET.sub(r"\1\2", key): value for key, value in tensors.items()}
    state = {key: value for key, value in own_names(state, own, path).items() if not key.startswith(auxiliary)}
    state = without_heads(state, own, path)
    found = state.get(f"{place}.weight")
    if found is not None and found.ndim and found.shape != own[f"{place}.weight"].shape:
        if keep_classifier:
            arguments = arguments | {"num_classes": len(found)}
            model = make_model(name, arguments)
        else:
            log.warning("dropped the %d-class layer %s of %s", len(found), place, path)
            state = {key: value for key, value in state.items() if not key.startswith(f"{place}.")}
    load_state(model, state, path, optional=() if keep_classifier else (f"{place}.weight", f"{place}.bias"))
    return model, arguments


def without_auxiliary_heads(model: nn.Module) -> nn.Module:
    """Return Inception and GoogLeNet without the heads that only training uses."""
    for name in AUXILIARY:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, None)
    if isinstance(model, models.GoogLeNet | models.Inception3):
        model.aux_logits = False
    return model


def last_layer(model: nn.Module) -> str:
    """Return the name of the layer that gives the class scores: the last linear layer or convolution."""
    return list(leaf_types(model, (nn.Linear, nn.Conv2d)))[-1]


def layer_width(layer: nn.Module, pooling: str) -> int:
    """Return the width of what enters the last layer (``avg``), or of what it puts out (``logits``)."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if isinstance(layer, nn.Linear):
        return layer.in_features if pooling == "avg" else layer.out_features
    return layer.in_channels if pooling == "avg" else layer.out_channels


def native_size(name: str) -> tuple[int, ...]:
    """Return the (height, width) of the images that a model's default weights were trained with."""
    (side,) = models.get_model_weights(name).DEFAULT.transforms().crop_size
    return side, side


def is_global_pool(name: str) -> bool:
    """Return whether an AdaptiveAvgPool2d is the network's own, not one inside a squeeze-excitation block."""
    return name.startswith("classifier.") or "." not in name


def find_stages(model: nn.Module, last: str) -> dict[str, list[str]]:
    """Split a model into stages: each block starts one, norms and activations join the one before.

    Containers named ``features``, ``blocks``, ``trunk_output``, ``encoder`` or ``layers`` are opened; all
    before the first block is the ``stem``. ResNet18: stem, layer1, layer2, layer3, layer4.
    """
    units: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if last != name and not last.startswith(f"{name}."):
            units += open_container(name, child)
    stages: dict[str, list[str]] = {"stem": []}
    plain = all(is_layer(child) for _, child in units)  # VGG, AlexNet: every convolution starts a stage
    for name, child in units:
        block = not is_layer(child) or (plain and isinstance(child, nn.Conv2d))
        if block and stages["stem"] and not name.startswith("stem"):
            stages[name] = [name]
        else:
            stages[list(stages)[-1]].append(name)
    head = last.rpartition(".")[0]  # VGG's classifier has layers before its last one
    before = [f"{head}.{name}" for name, _ in model.get_submodule(head).named_children()] if head else []
    stages[list(stages)[-1]] += [name for name in before if name != last]
    return stages


def open_container(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the blocks inside a container, or the module itself."""
    opened = name.rsplit(".", 1)[-1] in ("features", "blocks", "trunk_output", "encoder", "layers")
    if not opened:
        return [(name, module)]
    return [unit for key, child in module.named_children() for unit in open_container(f"{name}.{key}", child)]


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a single layer rather than a block of several."""
    return next(iter(module.children()), None) is None
