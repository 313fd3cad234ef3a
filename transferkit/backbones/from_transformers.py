"""Backbones from Hugging Face transformers (Dosovitskiy et al. 2020 for ViT, arXiv:2010.11929)."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from transferkit.backbones.base import Backbone, choose_pooling
from transferkit.backbones.block_stages import find_stages
from transferkit.backbones.dual_model import Projected, load_tower
from transferkit.backbones.families import PROJECTION, family_of
from transferkit.backbones.hub import VIT, is_hub_id, load_model, read_config, read_preprocessing
from transferkit.backbones.model_class import (
    ModelClass,
    model_class,
    normalizes_itself,
    takes_pooler,
)
from transferkit.backbones.model_output import ModelOutput, known_output, output_of, pooled_output
from transferkit.backbones.text_tower import TextTower, load_text_tower
from transferkit.backbones.token_grid import copy_resampled
from transferkit.errors import UserError, first_line
from transferkit.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Fields of a configuration that change no embedding: an export, which fills them in, has the architecture of its model.
NO_NUMBERS = ("architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version")

__all__ = ["VIT", "TransformersBackbone", "build", "rebuild"]


class TransformersBackbone(Backbone):
    """A transformers image model that takes ``pixel_values`` alone.

    Poolings, the default first: ``cls`` (the first token of the last hidden state), ``mean`` (of the patch tokens or
    over the map), ``cls+mean`` (both, 2 x width), ``pooler`` (the model's own pooled output; the default where the
    model always pools or its classifier reads it), ``projection`` (the space that image and text share, L2-normalized;
    of a model of images and texts).

    Args:
        name: hub id or directory it was built from.
        model: the base model, with its pooling layer only where that is read; a :class:`Projected` for ``projection``.
        preprocessing: what the weights expect.
        pooling: one of ``poolings``.
        dual: whether it is the vision tower of a model of images and texts.
        weights: where its weights are from, and those of its text tower: ``DEFAULT``, ``none`` or a file.
    """

    model: "PreTrainedModel | Projected"

    def __init__(
        self,
        name: str,
        model: "PreTrainedModel | Projected",
        preprocessing: Preprocessing,
        pooling: str | None = None,
        dual: bool = False,
        weights: str = "DEFAULT",
    ) -> None:
        super().__init__()
        self.name = self.place = name
        self.dual, self.weights = dual, weights
        self.model = model
        self.preprocessing = preprocessing
        self.takes_interpolation = takes_interpolation(model)
        self.stages = find_stages(model)
        output = known_output(model, preprocessing.image_size, dual) or self.dry_run(self.describe_output)
        self.prefix, self.gives_map = output.prefix or 0, output.prefix is None  # a map, otherwise tokens
        self.poolings = output.poolings
        self.pooling = choose_pooling(name, pooling, self.poolings)
        self.embed_dim = output.widths[self.pooling]
        if model.training:
            self.eval()
        self.training = False  # as from_pretrained leaves the model; eval() would go through all of its modules

    def run(self, pixels: Tensor, **options: Any) -> Any:
        """Return the model's own output object for normalized pixels (B, 3, H, W)."""
        if self.takes_interpolation:
            options["interpolate_pos_encoding"] = tuple(pixels.shape[-2:]) != native_size(self.model.config)
        return self.model(pixel_values=pixels, **options)

    def describe_output(self, pixels: Tensor) -> ModelOutput:
        """Return what the model puts out for pixels (1, 3, H, W)."""
        height, width = pixels.shape[-2:]
        return output_of(self.model, self.run(pixels), height, width, self.dual)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalized pixels: float (B, 3, H, W) -> (B, D)."""
        return self.pool(self.run(pixels))

    def pool(self, output: Any) -> Tensor:
        """Return one embedding per image from the model's output object: (B, D)."""
        if self.pooling == PROJECTION:
            projected: Tensor = output.image_embeds
            return projected  # (B, D)
        if self.pooling == "pooler":
            return pooled_output(output).flatten(1)  # (B, D)
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]  # (B, D)
        mean = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, self.prefix :].mean(1)
        return mean if self.pooling == "mean" else torch.cat((hidden[:, 0], mean), 1)  # (B, D) or (B, 2D)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the last hidden state: a map (B, C, h, w), or patch tokens (B, T, C)."""
        return self.unpooled(self.run(pixels, **self.extra))

    def forward_both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden state and the embedding, by one pass."""
        output = self.run(pixels, **self.extra)
        return self.unpooled(output), self.pool(output)

    @property
    def extra(self) -> dict[str, Any]:
        """What the model is asked for besides its last hidden state: Hiera's is in the order of its windows."""
        return {"output_hidden_states": True} if self.model.config.model_type == "hiera" else {}

    def unpooled(self, output: Any) -> Tensor:
        """Return the features from the model's output object: a map (B, C, h, w), or patch tokens (B, T, C)."""
        if self.extra:
            ordered: Tensor = output.reshaped_hidden_states[-1]
            return ordered.flatten(1, 2)
        hidden: Tensor = output.last_hidden_state
        return hidden if hidden.ndim == 4 else hidden[:, self.prefix :]

    def fit_to(self, image_size: tuple[int, int]) -> None:
        """Resample the model's table of positions to another image size, where it has one."""
        self.model = at_size(self.model, image_size)

    def spec(self) -> dict[str, Any]:
        """Return a plain-typed description, for :func:`rebuild`."""
        config = self.model.dual_config if isinstance(self.model, Projected) else self.model.config
        fields = with_numbers(config.to_diff_dict())
        if "down_ops" in fields:  # LeViT's model adds an empty one to its configuration whenever it is built
            fields["down_ops"] = [operation for operation in fields["down_ops"] if operation != [""]]
        described = self.describe("transformers", fields)
        return described | ({"weights": self.weights} if self.dual and self.weights != "DEFAULT" else {})

    @property
    def wordless(self) -> str | None:
        """Why it cannot be asked by words, with the remedy; None where it can."""
        if not self.dual:
            return super().wordless
        if self.weights == "none":
            return f'random weights of {self.name} know no words; leave out `weights="none"`'
        if self.pooling == PROJECTION or (self.pooling == "pooler" and pools_into_shared_space(self.model.config)):
            return None
        return (
            f"pooling {self.pooling} of {self.name} is not in the space that its images share with texts; "
            f'give `pooling="{PROJECTION}"`'
        )

    def open_text(self) -> TextTower:
        """Open the text tower that belongs to this image tower.

        Raises:
            UserError: see :attr:`wordless`; or its files are missing.
        """
        if self.wordless:
            raise UserError(f"it cannot be asked by words: {self.wordless}")
        if not is_hub_id(self.place) and not Path(self.place).is_dir():
            raise UserError(f"the texts of {self.name} are read from {self.place}, which no longer exists; restore it")
        config = read_config(self.place, self.weights, None)
        return load_text_tower(model_class(self.place, config, PROJECTION), self.place, self.weights)


def with_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration, and of those within it, that may change an embedding."""
    kept = {name: value for name, value in fields.items() if name not in NO_NUMBERS}
    return {name: with_numbers(value) if isinstance(value, dict) else value for name, value in kept.items()}


def build(
    name: str,
    weights: str = "DEFAULT",
    pooling: str | None = None,
    architecture: dict[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> TransformersBackbone:
    """Build a transformers backbone with its weights, in float32 whatever the file stores.

    Args:
        name: hub id (``google/vit-base-patch16-224-in21k``) or a local directory; of a model of images and texts
            its vision tower is built.
        weights: ``DEFAULT`` (the directory's or hub's), ``none`` (random), or a path.
        pooling: one of the backbone's poolings.
        architecture: changes to the configuration, with ``none`` only.
        preprocessing: fields that differ from the weights' own.

    Raises:
        UserError: not an image model, weights that do not fit, no network for a hub model.
    """
    config = read_config(name, weights, architecture)
    choice = model_class(name, config, pooling)
    scheme = read_preprocessing(name, config, weights, preprocessing or {})
    if normalizes_itself(choice.config):
        scheme = scheme.replace(mean=(0, 0, 0), std=(1, 1, 1))
    model: PreTrainedModel | Projected
    if weights == "none":
        model = make_model(choice, name, pooling)
    elif choice.dual:
        model = load_tower(choice, name, weights, pooling)
    else:
        model = load_model(choice.kind, name, weights, choice.config, choice.options, needs_pooler=pooling == "pooler")
    own = weights if weights in ("DEFAULT", "none") else str(Path(weights).absolute())
    return TransformersBackbone(name, at_size(model, scheme.image_size), scheme, pooling, choice.dual is not None, own)


def rebuild(spec: dict[str, Any]) -> TransformersBackbone:
    """Build the architecture that a :meth:`TransformersBackbone.spec` describes, with random weights."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**spec["architecture"])
    choice = model_class(spec["name"], config, spec["pooling"])
    model = make_model(choice, spec["name"], spec["pooling"])
    scheme = Preprocessing.from_dict(spec["preprocessing"])
    dual, weights = choice.dual is not None, spec.get("weights", "DEFAULT")
    return TransformersBackbone(spec["name"], model, scheme, spec["pooling"], dual, weights)


def make_model(choice: ModelClass, name: str, pooling: str | None) -> "PreTrainedModel | Projected":
    """Build a model with random weights, in float32.

    Raises:
        UserError: the configuration contradicts itself or needs a library that is not installed.
    """
    model: PreTrainedModel | Projected
    try:
        if choice.dual and choice.dual_config and pooling == PROJECTION:
            model = Projected.of(choice.dual(choice.dual_config))
        else:
            model = choice.kind(choice.config, **choice.options)
    except Exception as error:  # whatever a configuration makes a model raise
        raise UserError(f"{name} cannot be built from its configuration: {first_line(error)}") from error
    nn.Module.float(model)  # a configuration may ask for half precision
    return model


def pools_into_shared_space(config: "PreTrainedConfig") -> bool:
    """Return whether a vision tower's pooled output is in the space of the texts, without a projection (SigLIP)."""
    return config.model_type in ("siglip_vision_model", "tipsv2_vision_model")


def takes_interpolation(model: nn.Module) -> bool:
    """Return whether a model resamples its table of positions on each forward pass, but only when asked."""
    inner = model.vision_model if isinstance(model, Projected) else model
    return "interpolate_pos_encoding" in inspect.signature(inner.forward).parameters


def native_size(config: "PreTrainedConfig") -> tuple[int, ...]:
    """Return the (height, width) that a model was made for; empty where it takes any."""
    size: Any = getattr(config, "image_size", None)
    return (size, size) if isinstance(size, int) else tuple(size or ())


@torch.no_grad()
def at_size(model: Any, image_size: tuple[int, int]) -> Any:
    """Return the model made for another image size, its table of positions resampled; or the model where it has none.

    A model that takes any size by itself stays as it is, and so does one whose table cannot be resampled.
    """
    native = native_size(model.config)
    if not native or native == image_size or image_size[0] != image_size[1] or family_of(model.config, image_size):
        return model
    if not takes_interpolation(model):
        try:
            model.eval()(pixel_values=torch.zeros(1, 3, *image_size, device=model.device))
            return model
        except Exception:  # made for one size
            pass
    inner: Any = model.vision_model if isinstance(model, Projected) else model
    config = copy.deepcopy(inner.config)
    config.image_size = image_size[0] if isinstance(config.image_size, int) else list(image_size)
    pools = {"add_pooling_layer": inner.pooler is not None} if takes_pooler(type(inner)) else {}
    try:
        other = type(inner)(config, **pools).to(inner.device)
    except Exception:  # a configuration that does not allow it
        return model
    if not copy_resampled(inner, other):
        return model
    return (
        Projected(other.eval(), model.visual_projection, model.dual_config) if isinstance(model, Projected) else other
    )
