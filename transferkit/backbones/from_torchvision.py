"""Backbones from torchvision's classification models (He et al. 2015 for ResNet18, arXiv:1512.03385)."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from transferkit.backbones.base import Backbone, choose_pooling, leaf_types
from transferkit.backbones.weights import check_keys, read_state_dict, require_network
from transferkit.errors import UserError
from transferkit.preprocessing import Preprocessing

log = logging.getLogger(__name__)

POOLINGS = ("avg", "logits")


def names() -> list[str]:
    """torchvision's classification models by name."""
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
        self.stages = find_stages(model, self.last_layer)
        if self.pooling == "avg":
            model.set_submodule(self.last_layer, nn.Identity())
        self.embed_dim = self.try_blank(self).shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).flatten(1)  # (B, D)

    def forward_features(self, pixels: Tensor) -> Tensor:
        kept: list[Tensor] = []
        pool = [name for name in leaf_types(self.model, nn.AdaptiveAvgPool2d) if is_global_pool(name)]
        if pool:  # the map that enters the global pooling
            place = self.model.get_submodule(pool[-1])
            handle = place.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        else:  # pooled by a function, or a transformer: what the last stage gives
            place = [child for name, child in self.model.named_children() if not self.last_layer.startswith(name)][-1]
            handle = place.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            self.model(pixels)
        finally:
            handle.remove()
        features = kept[-1]
        return features[:, 1:] if features.ndim == 3 else features  # torchvision's ViT puts the class token first

    def spec(self) -> dict[str, Any]:
        return {
            "source": "torchvision",
            "name": self.name,
            "architecture": self.architecture,
            "pooling": self.pooling,
            "preprocessing": self.preprocessing.to_dict(),
        }


def build(
    name: str, weights: str = "DEFAULT", pooling: str | None = None, architecture: dict[str, Any] | None = None
) -> TorchvisionBackbone:
    """Build a torchvision backbone with its weights.

    Args:
        name: torchvision's name, such as ``resnet18``.
        weights: ``DEFAULT`` or another entry of the model's weights enum, ``none`` (random), or a
            path to a ``.safetensors`` file or state dict.
        pooling: ``avg`` or ``logits``.
        architecture: arguments of the model's builder, with ``none`` or a path only.

    Raises:
        UserError: unknown weights or arguments, a file that does not fit, no network for a download.
    """
    entries = models.get_model_weights(name)
    preset = next(iter(entries), None)
    scheme = Preprocessing.from_torchvision(preset.transforms()) if preset else Preprocessing.imagenet()
    if weights in ("DEFAULT", *(entry.name for entry in entries)):
        if architecture:
            raise UserError(f"architecture changes of {name} need --model.weights none; its weights fit only as it is")
        entry = entries[weights]
        scheme = Preprocessing.from_torchvision(entry.transforms())
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
        if not cached.is_file():
            remedy = (
                f"put {cached.name} into TORCH_HOME's hub/checkpoints, give --model.weights FILE, "
                "or --model.weights none for random weights"
            )
            require_network(entry.url, f"{name}'s {entry.name} weights", remedy)
        return TorchvisionBackbone(name, models.get_model(name, weights=entry), scheme, pooling)
    state = None if weights == "none" else read_state_dict(weights)
    arguments = dict(architecture or {})
    model = make_model(name, arguments)
    if state is not None:
        place = last_layer(model)
        wanted = model.get_submodule(place).weight
        found = state.get(f"{place}.weight")
        if isinstance(found, Tensor) and isinstance(wanted, Tensor) and found.shape != wanted.shape:
            if pooling == "logits":
                arguments["num_classes"] = found.shape[0]
                model = make_model(name, arguments)
            else:
                log.warning("dropped the %d-class layer %s of %s", found.shape[0], place, weights)
                for tensor in ("weight", "bias"):
                    state.pop(f"{place}.{tensor}", None)
        load(model, state, weights, optional=() if pooling == "logits" else (place,))
    return TorchvisionBackbone(name, model, scheme, pooling, arguments)


def rebuild(spec: dict[str, Any]) -> TorchvisionBackbone:
    """The architecture that a :meth:`TorchvisionBackbone.spec` describes, with random weights."""
    model = make_model(spec["name"], spec["architecture"])
    scheme = Preprocessing.from_dict(spec["preprocessing"])
    return TorchvisionBackbone(spec["name"], model, scheme, spec["pooling"], spec["architecture"])


def make_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """torchvision's model of that name with random weights; in float32.

    Raises:
        UserError: an argument the model does not take.
    """
    extra = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    try:
        return models.get_model(name, weights=None, **(extra | arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be built with {arguments}: {error}") from error


def load(model: nn.Module, state: dict[str, Tensor], path: str, optional: tuple[str, ...]) -> None:
    """Load a state dict, refusing any tensor that is missing, unexpected or of another shape."""
    own = model.state_dict()
    auxiliary = ("aux1.", "aux2.", "AuxLogits.")
    state = {key: value for key, value in state.items() if not key.startswith(auxiliary)}
    missing = [key for key in own if key not in state and not key.startswith(optional)]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    check_keys(path, missing, [key for key in state if key not in own])
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise UserError(f"{path}: {key} is {tuple(tensor.shape)}, {tuple(own[key].shape)} was expected")
    model.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in state.items()}, strict=False)


def without_auxiliary_heads(model: nn.Module) -> nn.Module:
    """Inception and GoogLeNet without the heads they only train with."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, None)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
    return model


def last_layer(model: nn.Module) -> str:
    """Name of the layer that gives the class scores: the last linear layer or convolution."""
    return list(leaf_types(model, (nn.Linear, nn.Conv2d)))[-1]


def is_global_pool(name: str) -> bool:
    """Whether an AdaptiveAvgPool2d is the network's own, not one inside a squeeze-excitation block."""
    return name.startswith("classifier.") or "." not in name


def find_stages(model: nn.Module, last: str) -> dict[str, list[str]]:
    """Split a model into stages: each block or convolution starts one, norms and activations join the one before.

    Containers named ``features``, ``blocks``, ``trunk_output`` or ``layers`` are opened; everything
    before the first block is the ``stem``. ResNet18: stem, layer1, layer2, layer3, layer4.
    """
    units: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if last != name and not last.startswith(f"{name}."):
            units += open_container(name, child)
    stages: dict[str, list[str]] = {"stem": []}
    plain = all(is_layer(child) for _, child in units)  # VGG, AlexNet: no blocks, every convolution is a stage
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
    """The blocks inside a container, or the module itself."""
    opened = name.rsplit(".", 1)[-1] in ("features", "blocks", "trunk_output", "encoder", "layers")
    if not opened:
        return [(name, module)]
    return [unit for key, child in module.named_children() for unit in open_container(f"{name}.{key}", child)]


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a single layer rather than a block of several."""
    return next(iter(module.children()), None) is None
