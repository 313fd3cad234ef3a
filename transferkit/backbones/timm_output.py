"""What timm's models put out: the poolings that it allows, and their widths."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from transferkit.errors import UserError

# Classes whose attributes tell the widths, as a test checks; models of other classes run once when they are opened.
TOKENS = ("VisionTransformer", "Eva")
MAPS = ("ResNet", "EfficientNet", "MobileNetV3", "ConvNeXt", "ByobNet", "RegNet", "SwinTransformer")


def known_output(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int, tuple[str, ...]] | None:
    """Return what a backbone's ``describe_output`` finds, where timm's attributes tell it; None where a pass is needed.

    Args:
        model: timm's model, its classifier removed unless its output is wanted.
        image_size: height and width of the images; those of another size than its own the model may refuse.
    """
    library: Any = model
    kind = type(model).__name__
    native = tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", ()))[1:]
    if kind not in (*TOKENS, *MAPS) or image_size != native:
        return None
    prefix = library.num_prefix_tokens if kind in TOKENS else 0
    return library.num_features, library.num_classes or library.head_hidden_size, poolings(prefix)


def remove_classifier(name: str, model: nn.Module) -> None:
    """Take the classifier of timm's model away.

    Raises:
        UserError: the model has no place for one, since it makes no embedding of the whole image.
    """
    library: Any = model
    if not hasattr(model, "reset_classifier"):
        raise UserError(
            f"{name} gives a language model its patches, and makes no embedding of the image; the nearest that opens "
            "is vit_base_patch16_siglip_224"
        )
    library.reset_classifier(0)


def poolings_of(features: Any, prefix: int) -> tuple[str, ...]:
    """Return the poolings that features allow, the default first.

    Args:
        features: what timm's ``forward_features`` returns.
        prefix: number of tokens before the patches.
    """
    if not isinstance(features, Tensor):  # only timm knows how they make one embedding
        return ("pooler",)
    return poolings(prefix if features.ndim == 3 else 0)


def poolings(prefix: int) -> tuple[str, ...]:
    """Return the poolings of one map, or of tokens with so many before the patches."""
    return ("pooler", "cls", "mean", "cls+mean") if prefix else ("pooler", "mean")


def last_of_several(model: nn.Module, features: Sequence[Tensor]) -> Tensor:
    """Return the last of the features of a model that puts out several: patch tokens (B, T, C).

    CoaT's and CrossViT's begin with a class token; EfficientViM's have the channels before the tokens.
    """
    return features[-1].mT if type(model).__name__.startswith("EfficientViM") else features[-1][:, 1:]
