"""Families of transformers' models whose output is known without running one."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PROJECTION = "projection"
TOKENS, PATCHES, MAP = ("cls", "mean", "cls+mean", "pooler"), ("mean", "pooler"), ("pooler", "mean")
DUAL = ("pooler", PROJECTION, "mean")
SMALLEST = 64  # side of images that a model of any size is known to take


class Family(NamedTuple):
    """What a family's models put out, whatever their size.

    Attributes:
        prefix: tokens before the patches, besides register tokens; None for a map.
        poolings: the default first.
        any_size: whether they take images of another size as they are.
    """

    prefix: int | None
    poolings: tuple[str, ...]
    any_size: bool = False


# Families that are opened without a pass over a blank image; a test compares this with what such a pass shows.
KNOWN = {
    "vit": Family(1, TOKENS),
    "deit": Family(2, TOKENS),
    "vit_msn": Family(1, TOKENS[:3]),
    "ijepa": Family(0, PATCHES),
    "dinov2": Family(1, TOKENS, any_size=True),
    "dinov2_with_registers": Family(1, TOKENS, any_size=True),
    "dinov3_vit": Family(1, TOKENS, any_size=True),
    "swin": Family(0, PATCHES),
    "swinv2": Family(0, PATCHES),
    "convnext": Family(None, MAP, any_size=True),
    "convnextv2": Family(None, MAP, any_size=True),
    "resnet": Family(None, MAP, any_size=True),
    "regnet": Family(None, MAP, any_size=True),
    "clip_vision_model": Family(1, ("pooler", *TOKENS[:3])),
    "siglip_vision_model": Family(0, MAP),
}


def family_of(config: "PreTrainedConfig", image_size: tuple[int, int]) -> Family | None:
    """Return what is known of a model's family, if its models take images of a size as they are.

    Args:
        config: of the model.
        image_size: height and width.
    """
    family, fields = KNOWN.get(config.model_type), config.to_dict()
    native = fields.get("image_size")
    if family is None or image_size in ((native, native), native):
        return family
    patch = fields.get("patch_size", 1)
    fits = isinstance(patch, int) and all(side >= SMALLEST and side % patch == 0 for side in image_size)
    return family if family.any_size and fits else None
