"""Hugging Face's ``preprocessor_config.json`` to the fields of a ``Preprocessing``, and back: plain dicts."""

import math
from collections.abc import Mapping
from typing import Any

from transferkit.errors import UserError

FILE = "preprocessor_config.json"

# Of transformers' image processors: what a preprocessor_config.json may leave out, first in general, then by
# class where it differs (transformers 5, models/*/image_processing_*.py). Other classes do other arithmetic.
_SQUARE = {"height": 224, "width": 224}
_CLIP = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": _SQUARE,
    "default_to_square": True,
    "resample": 2,
    "do_center_crop": False,
    "crop_size": _SQUARE,
    "crop_pct": 224 / 256,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {"size": {"height": 256, "width": 256}, "do_center_crop": True, "resample": 3},
    "Beit": {"resample": 3},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "default_to_square": False, "resample": 3},
    "Siglip": {"resample": 3},
}
_NEUTRAL = {  # fields that do not touch the pixels of a picture that is already RGB
    *("image_processor_type", "feature_extractor_type", "processor_class", "transferkit_arithmetic"),
    *("do_convert_rgb", "data_format", "input_data_format", "return_tensors", "image_seq_length"),
    *("device", "disable_grouping", "use_fast", "do_reduce_labels", "reduce_labels", "_valid_processor_keys"),
}
_TIMM: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_RESAMPLE: dict[int, str] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ``Preprocessing`` that does what an image processor of this configuration does.

    Raises:
        UserError: a field that cannot be honoured, named.
    """
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViTImageProcessor"
    name = str(kind).removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name not in _PROCESSORS:
        raise _unsupported("image_processor_type", kind, f"the classes {', '.join(_PROCESSORS)} are read")
    for key in sorted(set(config) - set(_DEFAULTS) - _NEUTRAL):
        if config[key]:
            raise _unsupported(key, config[key], "remove it if the weights do not depend on it")
    given = _DEFAULTS | _PROCESSORS[name] | {k: v for k, v in config.items() if v is not None}
    if not given["do_resize"]:
        raise _unsupported("do_resize", False, "pictures of one size are needed")
    if not isinstance(given["resample"], int) or given["resample"] not in _RESAMPLE:
        raise _unsupported("resample", given["resample"], "0 nearest, 2 bilinear and 3 bicubic are read")
    resize = _config_size("size", given["size"], square=given["default_to_square"])
    crop = _config_size("crop_size", given["crop_size"], square=True) if given["do_center_crop"] else None
    if name == "ConvNext":
        if not isinstance(resize, int) or crop is not None:
            raise _unsupported("size" if crop is None else "do_center_crop", given["size"], "see ConvNext")
        if resize < 384:
            resize, crop = int(resize / _positive("crop_pct", given["crop_pct"])), (resize, resize)
        else:
            resize = (resize, resize)
    if isinstance(resize, int) and crop is None:
        raise _unsupported("do_center_crop", False, "pictures would differ in size; give height and width")
    # Statistics of pixels scaled by another factor are brought to the scale of 0..1.
    factor = _positive("rescale_factor", given["rescale_factor"]) if given["do_rescale"] else 1
    scale = 1.0 if math.isclose(factor * 255, 1, rel_tol=1e-6) else 1 / (255 * factor)
    mean, std = (_channels(f, given[f]) for f in ("image_mean", "image_std"))
    if not given["do_normalize"]:
        mean, std = [0.0] * 3, [1.0] * 3
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": _RESAMPLE[given["resample"]],
        "mean": [value * scale for value in mean],
        "std": [value * scale for value in std],
        "arithmetic": config.get("transferkit_arithmetic", "transformers"),
    }


def to_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the image processor that does what ``fields`` (of a ``Preprocessing``) say."""
    resize, crop = fields["resize"], fields["crop"]
    size = {"shortest_edge": resize} if isinstance(resize, int) else _height_width(resize)
    return {
        "image_processor_type": "ViTImageProcessor" if crop is None else "BitImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": next(number for number, name in _RESAMPLE.items() if name == fields["interpolation"]),
        "do_center_crop": crop is not None,
        "crop_size": size if crop is None else _height_width(crop),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(fields["mean"]),
        "image_std": list(fields["std"]),
        "do_convert_rgb": True,
        "transferkit_arithmetic": fields["arithmetic"],
    }


def from_pretrained_cfg(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ``Preprocessing`` that does what timm's evaluation transform of a ``pretrained_cfg`` does.

    Fields left out take timm's defaults (timm/data/config.py and constants.py). The crop is torchvision's; Pillow's
    resize is within two grey levels of torchvision's.

    Raises:
        UserError: a field that cannot be honoured, named.
    """
    given = _TIMM | {key: value for key, value in config.items() if value is not None}
    size, mode, interpolation = given["input_size"], given["crop_mode"], given["interpolation"]
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(isinstance(side, int) for side in size):
        raise _unsupported("input_size", size, "channels, height and width are read", "pretrained_cfg")
    height, width = size[1:]
    if interpolation not in _RESAMPLE.values():
        remedy = f"{', '.join(_RESAMPLE.values())} are read"
        raise _unsupported("interpolation", interpolation, remedy, "pretrained_cfg")
    share = _positive("crop_pct", given["crop_pct"], "pretrained_cfg")
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise _unsupported("crop_mode", mode, "squash, and center of a square, are read", "pretrained_cfg")
    larger = (math.floor(height / share), math.floor(width / share))
    return {
        "resize": larger if mode == "squash" else larger[0],
        "crop": (height, width),
        "interpolation": interpolation,
        "mean": _channels("mean", given["mean"], "pretrained_cfg"),
        "std": _channels("std", given["std"], "pretrained_cfg"),
        "arithmetic": "torchvision",
    }


def _height_width(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _config_size(field: str, value: Any, square: bool) -> int | tuple[int, int]:
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
    raise _unsupported(field, value, "a number, shortest_edge, or height and width are read")


def _positive(field: str, value: Any, file: str = FILE) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _unsupported(field, value, "a number above 0 is needed", file)
    return float(value)


def _channels(field: str, value: Any, file: str = FILE) -> list[float]:
    values = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(values, list | tuple) or not all(isinstance(number, int | float) for number in values):
        raise _unsupported(field, value, "one number for each of red, green and blue is needed", file)
    return [float(number) for number in values]


def _unsupported(field: str, value: Any, remedy: str, file: str = FILE) -> UserError:
    return UserError(f"{file}: {field} {value!r} cannot be honoured; {remedy}")
