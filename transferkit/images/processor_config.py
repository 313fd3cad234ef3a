"""Hugging Face's ``preprocessor_config.json`` to the fields of a ``Preprocessing``, and back: plain dicts."""

import math
from collections.abc import Mapping
from typing import Any

from transferkit.errors import UserError
from transferkit.images.image_processor import unsupported

OWN = "transferkit"  # our key in a preprocessor_config.json: what transformers' fields cannot say
NOT_THEIRS = ("fit", "fill", "resize")
TIMM: dict[str, Any] = {  # timm/data/config.py and constants.py
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
RESAMPLE: dict[int, str] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
Sizes = tuple[int | tuple[int, int], tuple[int, int] | None]  # resize and crop


def from_config(config: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """Return the fields of a ``Preprocessing`` that does what an image processor of transformers does.

    Args:
        config: the configuration as it is in the file.
        processor: the image processor built from it, which has filled in its own defaults.

    Raises:
        UserError: a field cannot be honored; the message names it.
    """
    given = dict.fromkeys(("size", "crop_size", "resample")) | processor.to_dict()
    name = type(processor).__name__
    if not given.get("do_resize"):
        raise unsupported("do_resize", given.get("do_resize"), "images of one size are needed")
    if not isinstance(given["resample"], int) or given["resample"] not in RESAMPLE:
        raise unsupported("resample", given["resample"], "0 nearest, 2 bilinear and 3 bicubic are read")
    resize, crop = GEOMETRY.get(name, resize_and_crop)(given)
    if isinstance(resize, int) and crop is None:
        raise unsupported("do_center_crop", False, "images would differ in size; give height and width")
    rescaled = bool(given.get("do_rescale"))
    floats = name == "DINOv3ViTImageProcessor" and rescaled
    own: Any = config.get(OWN)
    own = own if isinstance(own, Mapping) else {}
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": RESAMPLE[given["resample"]],
        **STATISTICS.get(name, statistics)(
            given, positive("rescale_factor", given["rescale_factor"]) if rescaled else 1
        ),
        "arithmetic": config.get("transferkit_arithmetic", "transformers-float" if floats else "transformers"),
        "channels": "bgr" if name in FLIPPING and given.get("do_flip_channel_order") else "rgb",
        **{key: own[key] for key in NOT_THEIRS if key in own},
    }


def resize_and_crop(given: Mapping[str, Any]) -> Sizes:
    """Return what most classes do: resize to ``size``, then crop to ``crop_size``."""
    crop = config_size("crop_size", given["crop_size"]) if given.get("do_center_crop") else None
    if isinstance(crop, int):
        raise unsupported("crop_size", given["crop_size"], "height and width are read")
    return config_size("size", given["size"]), crop


def convnext(given: Mapping[str, Any]) -> Sizes:
    """Return ConvNeXt's: below 384 pixels a larger shorter side and a crop, from there on no crop."""
    side = config_size("size", given["size"])
    if not isinstance(side, int) or given.get("do_center_crop"):
        field = "do_center_crop" if isinstance(side, int) else "size"
        raise unsupported(field, given[field], "ConvNextImageProcessor resizes to shortest_edge and crops itself")
    share = positive("crop_pct", given["crop_pct"])
    return (int(side / share), (side, side)) if side < 384 else ((side, side), None)


def levit(given: Mapping[str, Any]) -> Sizes:
    """Return LeViT's: the shorter side becomes 256/224 of ``size``."""
    resize, crop = resize_and_crop(given)
    return (int((256 / 224) * resize) if isinstance(resize, int) else resize), crop


def poolformer(given: Mapping[str, Any]) -> Sizes:
    """Return PoolFormer's: ``size`` divided by ``crop_pct``, of a square the shorter side."""
    resize, crop = resize_and_crop(given)
    share = positive("crop_pct", given["crop_pct"])
    if isinstance(resize, int) or resize[0] == resize[1]:
        return int((resize if isinstance(resize, int) else resize[0]) / share), crop
    return (int(resize[0] / share), int(resize[1] / share)), crop


def statistics(given: Mapping[str, Any], factor: float) -> dict[str, list[float]]:
    """Return mean and std, brought from pixels scaled by ``factor`` to pixels scaled to 0..1."""
    scale = 1.0 if math.isclose(factor * 255, 1, rel_tol=1e-6) else 1 / (255 * factor)
    mean, std = ([0.0] * 3, [1.0] * 3)
    if given.get("do_normalize"):
        mean, std = (channels(field, given.get(field)) for field in ("image_mean", "image_std"))
    return {"mean": [value * scale for value in mean], "std": [value * scale for value in std]}


def efficientnet(given: Mapping[str, Any], factor: float) -> dict[str, list[float]]:
    """Return EfficientNet's: ``rescale_offset`` subtracts 1 after scaling, ``include_top`` divides by std once more."""
    plain = statistics(given, factor)
    twice = channels("image_std", given["image_std"]) if given.get("include_top") else [1.0] * 3
    offset = 1 / (255 * factor) if given.get("rescale_offset") and given.get("do_rescale") else 0.0
    return {
        "mean": [value + offset for value in plain["mean"]],
        "std": [value * again for value, again in zip(plain["std"], twice, strict=True)],
    }


def mobilevit(given: Mapping[str, Any], factor: float) -> dict[str, list[float]]:
    """Return MobileViT's, which never normalizes."""
    return statistics(dict(given) | {"do_normalize": False}, factor)


# What is really another arithmetic; every other class is read by its fields, and tried.
GEOMETRY = {
    "ConvNextImageProcessor": convnext,
    "LevitImageProcessor": levit,
    "PoolFormerImageProcessor": poolformer,
}
FLIPPING = ("MobileViTImageProcessor",)
STATISTICS = {"EfficientNetImageProcessor": efficientnet, "MobileViTImageProcessor": mobilevit}


def to_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the image processor that does what the fields of a ``Preprocessing`` say."""
    resize, crop = fields["resize"], fields["crop"]
    size = {"shortest_edge": resize} if isinstance(resize, int) else height_width(resize)
    own = {key: fields[key] for key in NOT_THEIRS if key in fields} if "fit" in fields else {}
    if own:  # the nearest that transformers has
        size = {"shortest_edge": max(resize)}
    config = {
        "image_processor_type": "ViTImageProcessor" if crop is None else "BitImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": next(number for number, name in RESAMPLE.items() if name == fields["interpolation"]),
        "do_center_crop": crop is not None,
        "crop_size": size if crop is None else height_width(crop),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(fields["mean"]),
        "image_std": list(fields["std"]),
        "do_convert_rgb": True,
        "transferkit_arithmetic": fields["arithmetic"],
        **({OWN: own} if own else {}),
    }
    if fields["arithmetic"] == "transformers-float":
        config["image_processor_type"] = "DINOv3ViTImageProcessor"
    if fields.get("channels") == "bgr":
        config |= {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}
        if any(fields["mean"]) or fields["std"] != [fields["std"][0]] * 3:
            raise UserError("channels: no image processor of transformers takes BGR and normalizes; give them as RGB")
        config |= {"do_normalize": False, "rescale_factor": 1 / (255 * fields["std"][0])}
    return config


def from_pretrained_cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ``Preprocessing`` that does what timm's evaluation transform of a ``pretrained_cfg`` does.

    Fields left out take timm's defaults. The crop is torchvision's; Pillow's resize is within two gray levels of
    torchvision's.

    Raises:
        UserError: a field cannot be honored; the message names it.
    """
    file = "pretrained_cfg"
    given = TIMM | {key: value for key, value in config.items() if value is not None}
    size, mode, interpolation = given["input_size"], given["crop_mode"], given["interpolation"]
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(isinstance(side, int) for side in size):
        raise unsupported("input_size", size, "channels, height and width are read", file)
    if size[0] != 3:
        raise unsupported("input_size", size, "models of 3 channels are opened", file)
    if interpolation not in RESAMPLE.values():
        raise unsupported("interpolation", interpolation, f"{', '.join(RESAMPLE.values())} are read", file)
    if mode not in ("center", "squash", "border"):
        raise unsupported("crop_mode", mode, "center, squash and border are read", file)
    height, width = size[1:]
    share = positive("crop_pct", given["crop_pct"], file)
    larger = (math.floor(height / share), math.floor(width / share))
    mean = channels("mean", given["mean"], file)
    fields = {
        "resize": larger,
        "crop": (height, width),
        "interpolation": interpolation,
        "mean": mean,
        "std": channels("std", given["std"], file),
        "arithmetic": "torchvision",
    }
    if mode == "border":
        return fields | {"fit": "contain", "fill": tuple(round(255 * value) for value in mean)}
    if mode == "center":
        return fields | ({"resize": larger[0]} if larger[0] == larger[1] else {"fit": "cover"})
    return fields


def height_width(size: tuple[int, int]) -> dict[str, int]:
    """Return a size as transformers' files hold it."""
    return {"height": size[0], "width": size[1]}


def config_size(field: str, value: Any) -> int | tuple[int, int]:
    """Return a size as an image processor has it: the shorter side, or (height, width)."""
    plain = {key: side for key, side in dict(value).items() if side is not None} if value else value
    match plain:
        case {"shortest_edge": int(side)} if len(plain) == 1:
            return side
        case {"height": int(height), "width": int(width)} if len(plain) == 2:
            return height, width
    raise unsupported(field, plain, "shortest_edge, or height and width, are read")


def positive(field: str, value: Any, file: str = "preprocessor_config.json") -> float:
    """Return a number above 0."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise unsupported(field, value, "a number above 0 is needed", file)
    return float(value)


def channels(field: str, value: Any, file: str = "preprocessor_config.json") -> list[float]:
    """Return one number per channel; one number stands for all."""
    values = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(values, list | tuple) or not all(isinstance(number, int | float) for number in values):
        raise unsupported(field, value, "one number for each of red, green and blue is needed", file)
    return [float(number) for number in values]
