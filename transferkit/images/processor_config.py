"""Conversion between ``preprocessor_config.json`` of Hugging Face and the fields of a ``Preprocessing``."""

import math
from collections.abc import Mapping
from typing import Any

from transferkit.errors import UserError

FILE = "preprocessor_config.json"

# Defaults of transformers' image processors for fields that are not in preprocessor_config.json: in general, then per
# class where they differ (transformers 5, models/*/image_processing_*.py). Other classes have other arithmetic.
SQUARE = {"height": 224, "width": 224}
CLIP = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": SQUARE,
    "default_to_square": True,
    "resample": 2,
    "do_center_crop": False,
    "crop_size": SQUARE,
    "crop_pct": 224 / 256,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {"size": {"height": 256, "width": 256}, "do_center_crop": True, "resample": 3},
    "Beit": {"resample": 3},
    "Bit": CLIP,
    "CLIP": CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "default_to_square": False, "resample": 3},
    "Siglip": {"resample": 3},
}
NEUTRAL = {  # fields that do not affect the pixels of a picture that is already RGB
    *("image_processor_type", "feature_extractor_type", "processor_class", "transferkit_arithmetic"),
    *("do_convert_rgb", "data_format", "input_data_format", "return_tensors", "image_seq_length"),
    *("device", "disable_grouping", "use_fast", "do_reduce_labels", "reduce_labels", "_valid_processor_keys"),
}
TIMM: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
RESAMPLE: dict[int, str] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the ``Preprocessing`` that is equivalent to an image processor of this configuration.

    Raises:
        UserError: a field is not supported.
    """
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViTImageProcessor"
    name = str(kind).removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name not in PROCESSORS:
        raise unsupported("image_processor_type", kind, f"the classes {', '.join(PROCESSORS)} are supported")
    for key in sorted(set(config) - set(DEFAULTS) - NEUTRAL):
        if config[key]:
            raise unsupported(key, config[key], "remove it if the weights do not depend on it")
    given = DEFAULTS | PROCESSORS[name] | {k: v for k, v in config.items() if v is not None}
    if not given["do_resize"]:
        raise unsupported("do_resize", False, "all pictures need the same size")
    if not isinstance(given["resample"], int) or given["resample"] not in RESAMPLE:
        raise unsupported("resample", given["resample"], "0 nearest, 2 bilinear and 3 bicubic are supported")
    resize = read_size("size", given["size"], square=given["default_to_square"])
    crop = read_size("crop_size", given["crop_size"], square=True) if given["do_center_crop"] else None
    if name == "ConvNext":
        if not isinstance(resize, int) or crop is not None:
            remedy = "ConvNext needs shortest_edge alone"
            raise unsupported("size" if crop is None else "do_center_crop", given["size"], remedy)
        if resize < 384:
            resize, crop = int(resize / read_positive("crop_pct", given["crop_pct"])), (resize, resize)
        else:
            resize = (resize, resize)
    if isinstance(resize, int) and crop is None:
        raise unsupported("do_center_crop", False, "pictures would differ in size; give height and width")
    # Convert statistics of pixels scaled by another factor to the scale of 0..1.
    factor = read_positive("rescale_factor", given["rescale_factor"]) if given["do_rescale"] else 1
    scale = 1.0 if math.isclose(factor * 255, 1, rel_tol=1e-6) else 1 / (255 * factor)
    mean, std = (read_channels(f, given[f]) for f in ("image_mean", "image_std"))
    if not given["do_normalize"]:
        mean, std = [0.0] * 3, [1.0] * 3
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": RESAMPLE[given["resample"]],
        "mean": [value * scale for value in mean],
        "std": [value * scale for value in std],
        "arithmetic": config.get("transferkit_arithmetic", "transformers"),
    }


def to_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the image processor that is equivalent to the fields of a ``Preprocessing``."""
    resize, crop = fields["resize"], fields["crop"]
    size = {"shortest_edge": resize} if isinstance(resize, int) else height_width(resize)
    return {
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
    }


def from_pretrained_cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the ``Preprocessing`` that is equivalent to timm's evaluation transform.

    Missing fields have timm's defaults (timm/data/config.py and constants.py). The crop is torchvision's; Pillow's
    resize is within two gray levels of torchvision's.

    Raises:
        UserError: a field is not supported.
    """
    given = TIMM | {key: value for key, value in config.items() if value is not None}
    size, mode, interpolation = given["input_size"], given["crop_mode"], given["interpolation"]
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(isinstance(side, int) for side in size):
        raise unsupported("input_size", size, "give channels, height and width", "pretrained_cfg")
    height, width = size[1:]
    if interpolation not in RESAMPLE.values():
        remedy = f"{', '.join(RESAMPLE.values())} are supported"
        raise unsupported("interpolation", interpolation, remedy, "pretrained_cfg")
    share = read_positive("crop_pct", given["crop_pct"], "pretrained_cfg")
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise unsupported("crop_mode", mode, "squash, and center of a square, are supported", "pretrained_cfg")
    larger = (math.floor(height / share), math.floor(width / share))
    return {
        "resize": larger if mode == "squash" else larger[0],
        "crop": (height, width),
        "interpolation": interpolation,
        "mean": read_channels("mean", given["mean"], "pretrained_cfg"),
        "std": read_channels("std", given["std"], "pretrained_cfg"),
        "arithmetic": "torchvision",
    }


def height_width(size: tuple[int, int]) -> dict[str, int]:
    """Return a size as transformers writes it.

    >>> height_width((224, 160))
    {'height': 224, 'width': 160}
    """
    return {"height": size[0], "width": size[1]}


def read_size(field: str, value: Any, square: bool) -> int | tuple[int, int]:
    """Return the shorter side, or (height, width), of a size in any of transformers' forms.

    >>> read_size("size", {"shortest_edge": 256}, square=False), read_size("size", 224, square=True)
    (256, (224, 224))
    """
    if isinstance(value, dict):
        value = {key: side for key, side in value.items() if side is not None}
    match value:
        case int(side):
            return (side, side) if square else side
        case {"shortest_edge": int(side)} if len(value) == 1:
            return side
        case {"height": int(height), "width": int(width)} if len(value) == 2:
            return height, width
        case [int(height), int(width)]:
            return height, width
    raise unsupported(field, value, "give a number, shortest_edge, or height and width")


def read_positive(field: str, value: Any, file: str = FILE) -> float:
    """Return a number above 0, or raise UserError."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise unsupported(field, value, "give a number above 0", file)
    return float(value)


def read_channels(field: str, value: Any, file: str = FILE) -> list[float]:
    """Return one number per channel, or raise UserError."""
    values = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(values, list | tuple) or not all(isinstance(number, int | float) for number in values):
        raise unsupported(field, value, "give one number for each of red, green and blue", file)
    return [float(number) for number in values]


def unsupported(field: str, value: Any, remedy: str, file: str = FILE) -> UserError:
    """Return the error for a field that is not supported."""
    return UserError(f"{file}: {field} {value!r} is not supported; {remedy}")
