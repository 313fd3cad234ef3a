"""Backbones from Hugging Face transformers (Dosovitskiy et al. 2020 for ViT, arXiv:2010.11929)."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from transferkit.backbones.base import Backbone, choose_pooling
from transferkit.backbones.hub import VIT, load_model, read_config, read_preprocessing
from transferkit.errors import UserError, first_line
from transferkit.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Fields of a configuration that change no embedding: an export, which fills them in, has the architecture of its model.
NO_NUMBERS = ("architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version")

__all__ = ["VIT", "TransformersBackbone", "build", "rebuild"]


class TransformersBackbone(Backbone):
    """A transformers image model that takes ``pixel_values`` alone.

    Poolings: ``cls`` (the first token of the last hidden state, first where there is a class token),
    ``mean`` (of the patch tokens or over the map), ``cls+mean`` (both, 2 x width), ``pooler`` (the model's
    own pooled output).

    Args:
        name: hub id or directory it was built from.
        model: the base model; built with its pooling layer only for pooling ``pooler``.
        preprocessing: what the weights expect.
        pooling: one of ``poolings``.
    """

    model: "PreTrainedModel"

    def __init__(
        self, name: str, model: "PreTrainedModel", preprocessing: Preprocessing, pooling: str | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.preprocessing = preprocessing
        self.takes_interpolation = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.stages = find_stages(model)
        output, self.prefix = self.try_blank(self.run_and_count)
        self.gives_map = output.last_hidden_state.ndim == 4  # a map, else tokens
        self.poolings = poolings_of(model, output, self.prefix)
        self.pooling = choose_pooling(name, pooling, self.poolings)
        self.embed_dim = self.pool(output).shape[1]

    def run(self, pixels: Tensor) -> Any:
        """The model's own output object for normalised pixels (B, 3, H, W)."""
        if not self.takes_interpolation:
            return self.model(pixel_values=pixels)
        native = getattr(self.model.config, "image_size", None)
        size = (native, native) if isinstance(native, int) else tuple(native or ())
        return self.model(pixel_values=pixels, interpolate_pos_encoding=tuple(pixels.shape[-2:]) != size)

    def run_and_count(self, pixels: Tensor) -> tuple[Any, int]:
        """The output, and how many tokens in it stand before the patches (0 for a map)."""
        output = self.run(pixels)
        hidden: Tensor = output.last_hidden_state
        height, width = pixels.shape[-2:]
        if hidden.ndim == 4:
            check_channels(hidden.shape[1:], height, width, self.model.config.to_dict())
            return output, 0
        patch = getattr(self.model.config, "patch_size", None)
        return output, count_prefix(hidden.shape[1], height, width, patch if isinstance(patch, int) else None)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels: float (B, 3, H, W) -> (B, D)."""
        return self.pool(self.run(pixels))

    def pool(self, output: Any) -> Tensor:
        """One embedding an image from the model's output object: (B, D)."""
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.flatten(1)  # (B, D)
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]  # (B, D)
        mean = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, self.prefix :].mean(1)
        return mean if self.pooling == "mean" else torch.cat((hidden[:, 0], mean), 1)  # (B, D) or (B, 2D)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """The last hidden state: a map (B, C, h, w), or patch tokens (B, T, C)."""
        hidden: Tensor = self.run(pixels).last_hidden_state
        return hidden if hidden.ndim == 4 else hidden[:, self.prefix :]

    def spec(self) -> dict[str, Any]:
        """Plain-typed description, for :func:`rebuild`."""
        config = {key: value for key, value in self.model.config.to_diff_dict().items() if key not in NO_NUMBERS}
        return {
            "source": "transformers",
            "name": self.name,
            "architecture": config,
            "pooling": self.pooling,
            "preprocessing": self.preprocessing.to_dict(),
        }


def build(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    architecture: dict[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> TransformersBackbone:
    """Build a transformers backbone with its weights, in float32 whatever the file stores.

    Args:
        name: hub id (``google/vit-base-patch16-224-in21k``) or a local directory.
        weights: ``DEFAULT`` (the directory's or hub's), ``none`` (random), or a path.
        pooling: one of the backbone's poolings.
        architecture: changes to the configuration, with ``none`` only.
        preprocessing: fields that differ from the weights' own.

    Raises:
        UserError: not an image model, weights that do not fit, no network for a hub model.
    """
    config = read_config(name, weights, architecture)
    kind, options = model_class(name, config, pooling)
    scheme = read_preprocessing(name, config, weights, preprocessing or {})
    if weights == "none":
        model = make_model(kind, name, config, options)
    else:
        model = load_model(kind, name, weights, config, options)
    return TransformersBackbone(name, model, scheme, pooling)


def rebuild(spec: dict[str, Any]) -> TransformersBackbone:
    """The architecture that a :meth:`TransformersBackbone.spec` describes, with random weights."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**spec["architecture"])
    kind, options = model_class(spec["name"], config, spec["pooling"])
    model = make_model(kind, spec["name"], config, options)
    scheme = Preprocessing.from_dict(spec["preprocessing"])
    return TransformersBackbone(spec["name"], model, scheme, spec["pooling"])


def model_class(
    name: str, config: "PreTrainedConfig", pooling: str | None
) -> tuple["type[PreTrainedModel]", dict[str, Any]]:
    """transformers' base model class for a configuration, and its options for a pooling.

    Raises:
        UserError: it has none, or one that does not take pixels alone or whose tokens are no patches.
    """
    from transformers import MODEL_MAPPING

    what = f"{name} is a {config.model_type} model"
    if type(config) not in MODEL_MAPPING:
        raise UserError(f"{what}, which transformers cannot open as a backbone; give an image model")
    found: Any = MODEL_MAPPING[type(config)]
    kind = found[0] if isinstance(found, list | tuple) else found
    if hasattr(config, "vision_config"):
        raise UserError(f"{what} of images and text; save its vision model alone and give that directory")
    if kind.main_input_name != "pixel_values":
        raise UserError(f"{what}: it takes {kind.main_input_name}, not images; give an image model")
    if config.model_type == "vit_mae":
        raise UserError(f"{what}, which masks patches at random; save its encoder as a plain ViTModel")
    if hasattr(config, "num_detection_tokens"):
        raise UserError(f"{what}, which mixes detection tokens with the patches; give a classification model")
    return kind, {"add_pooling_layer": pooling == "pooler"} if takes_pooler(kind) else {}


def make_model(
    kind: "type[PreTrainedModel]", name: str, config: "PreTrainedConfig", options: dict[str, Any]
) -> "PreTrainedModel":
    """A model with random weights, in float32.

    Raises:
        UserError: the configuration contradicts itself or needs a library that is not installed.
    """
    try:
        model = kind(config, **options)
    except Exception as error:  # whatever a configuration makes a model raise
        raise UserError(f"{name} cannot be built from its configuration: {first_line(error)}") from error
    nn.Module.float(model)  # a configuration may ask for half precision
    return model


def poolings_of(model: nn.Module, output: Any, prefix: int) -> tuple[str, ...]:
    """The poolings a model offers, its default first, from one output of it."""
    optional = takes_pooler(type(model)) and hasattr(output, "pooler_output")  # CvT takes the option for nothing
    pooler = ("pooler",) if optional or output.get("pooler_output") is not None else ()
    if prefix:
        return ("cls", "mean", "cls+mean", *pooler)
    return ("mean", *pooler) if optional else (*pooler, "mean")


def check_channels(shape: Sequence[int], height: int, width: int, config: Mapping[str, Any]) -> None:
    """Refuse a map whose channels come last, as SAM 2's do: its mean would be over the wrong axes.

    Args:
        shape: of the map, without the batch.
        height: of the image.
        width: of the image.
        config: of the model; its widths tell where the shape alone does not.

    Raises:
        ValueError: the channels come last.
    """

    def shrunk(rows: int, columns: int) -> bool:  # are these the axes of the image?
        return abs(rows / height - columns / width) < 1 / min(height, width)

    named = [value for key, value in config.items() if "hidden_size" in key or "dim" in key or "channel" in key]
    widths = {side for value in named for side in (value if isinstance(value, list | tuple) else [value])}
    told = shape[2] in widths and shape[0] not in widths
    if shrunk(shape[0], shape[1]) and (told or not shrunk(shape[1], shape[2])):
        raise ValueError(f"it puts out {' x '.join(map(str, shape))}, the channels last")


def takes_pooler(kind: type[nn.Module]) -> bool:
    """Whether a model class builds its pooling layer only when asked."""
    return "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def count_prefix(tokens: int, height: int, width: int, patch: int | None) -> int:
    """How many tokens stand before the patches: class, distillation and register tokens.

    A transformer of one resolution has a token a patch; one that merges patches has a token for each
    2, 4, 8 ... x as many pixels, and at most one before them.

    Raises:
        ValueError: the rest are not the patches of an image of this size.
    """
    if patch and tokens >= (grid := (height // patch) * (width // patch)):
        return tokens - grid
    for prefix in (0, 1):
        for stride in (4, 8, 16, 32, 64):
            if math.ceil(height / stride) * math.ceil(width / stride) == tokens - prefix:
                return prefix
    raise ValueError(f"{tokens} tokens of {height} x {width} pixels are no grid of patches")


def find_stages(model: nn.Module) -> dict[str, list[str]]:
    """Stages of a transformers model: all before its outermost list of blocks, then each block.

    Lists of the same length beside it run in step with it (PVT: patch embeddings and blocks). What follows
    the blocks (a last norm, a pooler) joins the last stage. ViT: embeddings, block 0 ... 11.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        return {"embeddings": [name for name, _ in model.named_children()]}
    path = next(iter(lists)).split(".")
    before: list[str] = []
    after: list[str] = []
    for depth, part in enumerate(path):  # down to the blocks, past what stands before and after them
        parents = path[:depth]
        children = [name for name, _ in model.get_submodule(".".join(parents)).named_children()]
        place = children.index(part)
        before += [".".join((*parents, name)) for name in children[:place]]
        after += [".".join((*parents, name)) for name in children[place + 1 :]]
    blocks = lists[".".join(path)]
    parallel = [name for name in after if name in lists and len(lists[name]) == len(blocks)]
    stages = {"embeddings": before} if before else {}
    for index in range(len(blocks)):
        stages[f"block {index}"] = [f"{name}.{index}" for name in (".".join(path), *parallel)]
    stages[list(stages)[-1]] += [name for name in after if name not in parallel]
    return stages
