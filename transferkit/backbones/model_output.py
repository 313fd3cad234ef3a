"""What a transformers model puts out: tokens or a map, the poolings that this allows, and their widths."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from transferkit.backbones.dual_model import Projected
from transferkit.backbones.families import DUAL, PROJECTION, TOKENS, family_of
from transferkit.backbones.model_class import classifier_reads_pooler, takes_pooler
from transferkit.backbones.token_grid import check_channels, count_prefix


class ModelOutput(NamedTuple):
    """What a model puts out for one image.

    Attributes:
        prefix: number of tokens before the patches; None for a map.
        poolings: the default first.
        widths: pooling -> numbers per image.
    """

    prefix: int | None
    poolings: tuple[str, ...]
    widths: Mapping[str, int]


def known_output(model: Any, image_size: tuple[int, int], dual: bool) -> ModelOutput | None:
    """Return what a model puts out where that is known without running it.

    Args:
        model: base model, or :class:`Projected`.
        image_size: height and width of the images.
        dual: whether it is the vision tower of a model of images and texts.
    """
    config: Any = model.config
    family = family_of(config, image_size)
    if family is None:
        return None
    prefix = None if family.prefix is None else family.prefix + getattr(config, "num_register_tokens", 0)
    width: int = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
    widths = {**dict.fromkeys((*TOKENS, PROJECTION), width), "cls+mean": 2 * width}
    if isinstance(model, Projected) and isinstance(model.visual_projection, nn.Linear):
        widths[PROJECTION] = model.visual_projection.out_features
    return ModelOutput(prefix, DUAL if dual else family.poolings, widths)


def output_of(model: nn.Module, output: Any, height: int, width: int, dual: bool) -> ModelOutput:
    """Return what one output of a model shows.

    Args:
        model: base model, or :class:`Projected`.
        output: the model's own, for one image.
        height: of the image.
        width: of the image.
        dual: as for :func:`known_output`.

    Raises:
        ValueError: its tokens are not a grid of patches, or its channels come last.
    """
    config: Any = model.config
    hidden, pooled = output.last_hidden_state, pooled_output(output)
    prefix = None
    if hidden.ndim == 4:
        check_channels(hidden.shape[1:], height, width, config.to_dict())
    else:
        patch = getattr(config, "patch_size", None)
        prefix = count_prefix(hidden.shape[1], height, width, patch if isinstance(patch, int) else None)
    wide = hidden.shape[1 if prefix is None else 2]
    widths = {"cls": wide, "mean": wide, "cls+mean": 2 * wide}
    for pooling, embedding in (("pooler", pooled), (PROJECTION, output.get("image_embeds"))):
        widths[pooling] = wide if embedding is None else embedding.flatten(1).shape[1]
    return ModelOutput(prefix, poolings_of(model, output, prefix or 0, dual), widths)


def pooled_output(output: Any) -> Tensor:
    """Return the model's own embedding of the image: its pooled output, or RADIO's summary tokens."""
    pooled = output.get("pooler_output")
    summary: Tensor = output.get("summary") if pooled is None else pooled
    return summary


def poolings_of(model: nn.Module, output: Any, prefix: int, dual: bool) -> tuple[str, ...]:
    """Return the poolings a model offers, its default first, from one output of it."""
    pooled = pooled_output(output)
    if dual:  # its tokens are not normalized, and nobody reads its class token before the last norm
        return (*(() if pooled is None else ("pooler",)), PROJECTION, "mean")
    config: Any = model.config
    optional = takes_pooler(type(model)) and hasattr(output, "pooler_output")  # CvT takes the option for nothing
    tokens = ("cls", "mean", "cls+mean") if prefix else ("mean",)
    if optional:
        if not classifier_reads_pooler(type(model), config):
            return (*tokens, "pooler")
        if pooled is not None:
            return ("pooler", *tokens)
        return ("mean", *(token for token in tokens if token != "mean"), "pooler")  # its weights are not there
    if pooled is None:
        return tokens
    is_token = prefix > 0 and torch.equal(pooled.flatten(1), output.last_hidden_state[:, 0])
    return (*tokens, "pooler") if is_token else ("pooler", *tokens)
