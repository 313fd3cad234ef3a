"""Backbones from timm (Wightman 2019, github.com/huggingface/pytorch-image-models); needs the extra ``timm``."""

import copy
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.base import Backbone, choose_pooling
from transferkit.backbones.hub import split_revision
from transferkit.backbones.hub_faults import hub_fault
from transferkit.backbones.loading import check_finite, load_state, own_names, without_heads
from transferkit.backbones.spelling import near_names
from transferkit.backbones.timm_names import HUB, OWN, is_config, known, read_config
from transferkit.backbones.timm_output import known_output, last_of_several, poolings_of, remove_classifier
from transferkit.backbones.timm_stages import find_stages
from transferkit.backbones.weights import read_state_dict
from transferkit.errors import UserError, first_line
from transferkit.images.preprocessing import Preprocessing, is_complete
from transferkit.runtime.optional import optional
from transferkit.runtime.reachability import require_network

log = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SAFE_NAMES = {"open_clip_pytorch_model.bin": "open_clip_model.safetensors"}  # which timm takes first


class TimmBackbone(Backbone):
    """A timm model up to its classifier.

    Poolings, the default first: ``pooler`` (what timm's classifier reads), ``cls`` (the class token), ``mean`` (of the
    patch tokens or over the map), ``cls+mean`` (both, 2 x width), ``logits`` (the classifier kept).

    Args:
        name: name, hub id or directory it was built from.
        model: timm's model, its classifier in place.
        preprocessing: what the weights expect.
        pooling: one of ``poolings``.
        architecture: arguments of ``timm.create_model`` besides the weights, for :meth:`spec`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocessing: Preprocessing,
        pooling: str | None = None,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.preprocessing = preprocessing
        self.architecture = dict(architecture or {})
        self.made_for = preprocessing.image_size  # (height, width)
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.channels_last = getattr(model, "output_fmt", None) == "NHWC"
        self.classifier = classifier_name(model)
        has_logits = self.classifier is not None and isinstance(model.get_submodule(self.classifier), nn.Linear)
        if not (has_logits and pooling == "logits"):
            remove_classifier(name, model)
        width, read, poolings = known_output(model, self.made_for) or self.dry_run(self.describe_output)
        self.poolings = (*poolings, "logits") if has_logits else poolings
        self.pooling = choose_pooling(name, pooling, self.poolings)
        self.stages = find_stages(model)
        self.embed_dim = {"cls": width, "mean": width, "cls+mean": 2 * width}.get(self.pooling, read)
        self.eval()

    def describe_output(self, pixels: Tensor) -> tuple[int, int, tuple[str, ...]]:
        """Return the width of the features, that of what timm makes of them, and the poolings but for ``logits``."""
        library: Any = self.model
        features = library.forward_features(pixels)
        patches = self.without_prefix(features)
        width, read = patches.shape[2 if patches.ndim == 3 else 1], library.forward_head(features).flatten(1).shape[1]
        return width, read, poolings_of(features, self.prefix)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalized pixels: float (B, 3, H, W) -> (B, D)."""
        library: Any = self.model
        if self.pooling in ("pooler", "logits"):
            output: Tensor = library(pixels)
            return output.flatten(1)  # (B, D)
        return self.pool(library.forward_features(pixels))

    def pool(self, features: Tensor) -> Tensor:
        """Return one embedding per image from what timm's ``forward_features`` returns: (B, D)."""
        library: Any = self.model
        if self.pooling in ("pooler", "logits"):
            output: Tensor = library.forward_head(features)
            return output.flatten(1)  # (B, D)
        cls: Tensor = features[:, 0]
        if self.pooling == "cls":
            return cls  # (B, D)
        patches = self.without_prefix(features)
        mean = patches.mean((2, 3)) if patches.ndim == 4 else patches.mean(1)
        return mean if self.pooling == "mean" else torch.cat((cls, mean), 1)  # (B, D) or (B, 2D)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return what enters timm's pooling: a map (B, C, h, w), or patch tokens (B, T, C)."""
        library: Any = self.model
        return self.without_prefix(library.forward_features(pixels))

    def forward_both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the embedding, by one pass."""
        library: Any = self.model
        features = library.forward_features(pixels)
        return self.without_prefix(features), self.pool(features)

    def without_prefix(self, features: Any) -> Tensor:
        """Return a map with its channels first, or tokens without those before the patches; of several, the last."""
        if not isinstance(features, Tensor):
            return last_of_several(self.model, features)
        if features.ndim == 4:
            return features.movedim(-1, 1) if self.channels_last else features
        return features[:, self.prefix :]

    def forward_stage(self, pixels: Tensor, stage: str) -> Tensor:
        """Return what a stage puts out: a map (B, C, h, w) or all tokens (B, T, C)."""
        output: Any = super().forward_stage(pixels, stage)
        output = output if isinstance(output, Tensor) else output[-1]  # CrossViT's stages have several branches
        inner = stage != self.stage_names[-1]
        return output.movedim(-1, 1) if inner and output.ndim == 4 and self.channels_last else output  # type: ignore[no-any-return]

    def fit_to(self, image_size: tuple[int, int]) -> None:
        """Resample the model's table of positions to another image size, where timm's class can."""
        library_model: Any = self.model
        if image_size != self.made_for and hasattr(self.model, "set_input_size"):
            library_model.set_input_size(img_size=image_size)
            self.architecture["img_size"] = list(image_size)
        self.made_for = image_size

    def spec(self) -> dict[str, Any]:
        """Return a plain-typed description, for :func:`rebuild`."""
        return self.describe("timm", self.architecture)


def build(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    architecture: dict[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> TimmBackbone:
    """Build a timm backbone with its weights, in float32.

    Args:
        name: timm's name with or without a tag (``resnet50.a1_in1k``), ``hf-hub:owner/model``, or a local directory
            in the layout of timm's repositories.
        weights: ``DEFAULT`` (the name's, hub's or directory's), ``none`` (random), or a path.
        pooling: one of the backbone's poolings.
        architecture: arguments of ``timm.create_model``, with ``none`` only.
        preprocessing: fields that differ from the weights' own.

    Raises:
        UserError: timm is not installed, unknown name, weights that do not fit, no network for a download.
    """
    if architecture and weights != "none":
        raise UserError(f'architecture changes of {name} need `weights="none"`; its weights fit only as it is')
    arguments, cfg = describe(name, weights)
    arguments |= architecture or {}
    scheme = Preprocessing.from_timm(cfg | sized(arguments)).override(preprocessing or {})
    if scheme.image_size != default_size(arguments):
        arguments |= sizes(arguments, scheme.image_size)
    file = weights_file(name, weights)
    model = make_model(name, arguments, weights == "DEFAULT" and file is None, cfg)
    if file is not None:
        load_file(model, file)
    if weights not in ("none", "DEFAULT") and not is_complete(preprocessing or {}):
        log.warning(
            "images for %s are prepared as for %s: %s; `preprocessing` changes it", weights, name, scheme.in_words()
        )
    nn.Module.float(model)
    check_finite(name if weights == "DEFAULT" else weights, model.state_dict())
    return TimmBackbone(name, model, scheme, pooling, arguments)


def rebuild(spec: dict[str, Any]) -> TimmBackbone:
    """Build the architecture that a :meth:`TimmBackbone.spec` describes, with random weights."""
    arguments = dict(spec["architecture"])
    model = make_model(spec["name"], arguments, False, {})
    return TimmBackbone(spec["name"], model, Preprocessing.from_dict(spec["preprocessing"]), spec["pooling"], arguments)


def describe(name: str, weights: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of ``timm.create_model`` and the ``pretrained_cfg`` of a name.

    Raises:
        UserError: timm is not installed or does not know the name, or the hub cannot be reached.
    """
    timm = library()
    if Path(name).is_dir():
        config = read_config(Path(name, "config.json"))
        return arguments_of(config), dict(config.get("pretrained_cfg") or {})
    hub_id = name.removeprefix(HUB[0]).removeprefix(HUB[1])
    if hub_id.startswith("timm/") and timm.is_model_pretrained(hub_id.removeprefix("timm/")):
        name = hub_id.removeprefix("timm/")  # timm knows what is in the repository
    if "/" in name:
        config = hub_config(hub_id, weights)
        if not is_config(config):
            raise UserError(f"{hub_id} is not a repository of timm's; leave out {HUB[0]}")
        return arguments_of(config), dict(config.get("pretrained_cfg") or {}) | {"hf_hub_id": hub_id}
    name = name.removeprefix(OWN)
    if name.partition(".")[0] not in known():
        raise UserError(f"timm has no model {name!r}; nearest: {', '.join(near_names(name)) or 'resnet18'}")
    try:
        found = timm.models.get_pretrained_cfg(name)
        if found is None and "." in name:  # another tag than those it knows
            raise RuntimeError(f"Invalid pretrained tag ({name.partition('.')[2]})")
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        hint = f"; it has {', '.join(tags[:5])}" if tags else ""
        raise UserError(f"timm has no weights {name!r}: {first_line(error)}{hint}") from error
    return {"model_name": name}, found.to_dict() if found else {}


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that a ``config.json`` says."""
    arguments = {"model_name": str(config["architecture"]), **(config.get("model_args") or {})}
    if isinstance(config.get("num_classes"), int):
        arguments["num_classes"] = config["num_classes"]
    return arguments


def hub_config(hub_id: str, weights: str) -> dict[str, Any]:
    """Read the ``config.json`` of a repository, from the cache or the hub.

    Raises:
        UserError: it is neither here nor can be downloaded.
    """
    from huggingface_hub import constants, hf_hub_download

    repo, revision = split_revision(hub_id)
    try:
        return read_config(Path(hf_hub_download(repo, "config.json", revision=revision, local_files_only=True)))
    except OSError:
        remedy = "give a local directory or a filled HF_HOME"
        require_network(constants.ENDPOINT, f"{hub_id} (configuration)", remedy)
    try:
        return read_config(Path(hf_hub_download(repo, "config.json", revision=revision)))
    except Exception as error:
        raise hub_fault(hub_id, "configuration", error) from error


def library() -> Any:
    """Import timm.

    Raises:
        UserError: it is not installed.
    """
    return optional("timm", "'transferkit[timm]'", "this backbone")


def make_model(name: str, arguments: Mapping[str, Any], pretrained: bool, cfg: Mapping[str, Any]) -> nn.Module:
    """Build timm's model, with its own weights where they come by name.

    Raises:
        UserError: an argument that the model does not take, or weights that cannot be downloaded.
    """
    options = {**copy.deepcopy(dict(arguments)), "pretrained": pretrained}  # some models keep what they are given
    if "/" in name and cfg:
        options["pretrained_cfg"] = dict(cfg)
    file = cached_weights(cfg) if pretrained else None
    if file:  # timm itself would ask the hub whether there is a newer one
        options["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    elif pretrained:
        require_weights(name, cfg)
    try:
        model: nn.Module = library().create_model(**options)
    except Exception as error:  # whatever arguments or a broken download make it raise
        raise UserError(f"{name} cannot be built with {dict(arguments)}: {first_line(error)}") from error
    return model


def cached_weights(cfg: Mapping[str, Any]) -> Path | None:
    """Return the file with the weights of a ``pretrained_cfg`` in the hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    if not cfg.get("hf_hub_id") or cfg.get("custom_load") == "hf":
        return None
    repo, revision = split_revision(cfg["hf_hub_id"])
    named = cfg.get("hf_hub_filename")
    files = (str(Path(named).with_suffix(".safetensors")), SAFE_NAMES.get(named, named), named) if named else WEIGHTS
    found = (try_to_load_from_cache(repo, file, revision=revision) for file in files)
    return next((Path(file) for file in found if isinstance(file, str)), None)


def require_weights(name: str, cfg: Mapping[str, Any]) -> None:
    """Check that the host of the weights of a name can be reached, or that timm has them in its own cache.

    Raises:
        UserError: neither, or the name has no weights.
    """
    from huggingface_hub import constants

    remedy = 'give `weights=FILE`, or `weights="none"` for random weights'
    if cfg.get("hf_hub_id"):
        require_network(constants.ENDPOINT, f"{name}'s weights", remedy)
    elif cfg.get("url"):
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(cfg["url"]).name)
        if not cached.is_file():
            require_network(cfg["url"], f"{name}'s weights", remedy)
    else:
        raise UserError(f"timm has no pretrained weights for {name}; {remedy}")


def weights_file(name: str, weights: str) -> Path | None:
    """Return the file to load: a given one, or a directory's own; None where timm loads by name, or nothing.

    Raises:
        UserError: a directory without weights.
    """
    if weights == "none":
        return None
    if weights != "DEFAULT":
        return Path(weights)
    if not Path(name).is_dir():
        return None
    file = next((Path(name, file) for file in WEIGHTS if Path(name, file).is_file()), None)
    if file is None:
        raise UserError(f"{name} has no weights ({' or '.join(WEIGHTS)}); put them there, or give `weights`")
    return file


def load_file(model: nn.Module, file: Path) -> None:
    """Load a state dict into timm's model, its names and sizes brought to the model's by timm where it does so.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    state = own_names(read_state_dict(file), own, file)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(state, model)
    place = classifier_name(model)
    head = {key for key in own if place and key.startswith(f"{place}.")}
    if any(key in state and state[key].shape != own[key].shape for key in head):
        log.warning("dropped the %d-class layer %s of %s", len(state[f"{place}.weight"]), place, file)
        state = {key: value for key, value in state.items() if key not in head}
    load_state(model, without_heads(state, own, file), file, optional=head)


def classifier_name(model: nn.Module) -> str | None:
    """Return the name of timm's classifier within its model; None where there are none or two."""
    library_model: Any = model
    layer = library_model.get_classifier() if hasattr(model, "get_classifier") else None
    return next((name for name, module in model.named_modules() if module is layer and name), None)


def default_size(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the (height, width) for which timm builds a model where it is not told otherwise."""
    found = library().models.get_pretrained_cfg(str(arguments["model_name"]).partition(".")[0])
    return tuple(found.input_size[1:]) if found else (224, 224)


def sizes(arguments: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the option that builds a model for another image size, where its class takes one."""
    timm = library()
    with torch.device("meta"):
        try:
            timm.create_model(**arguments | {"img_size": image_size})
        except Exception:  # a convolutional network takes any size
            return {}
    return {"img_size": list(image_size)}


def sized(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``input_size`` that an ``img_size`` among the arguments means."""
    size = arguments.get("img_size")
    if size is None:
        return {}
    return {"input_size": (3, size, size) if isinstance(size, int) else (3, *size)}
