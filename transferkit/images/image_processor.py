"""transformers' image processors: the class that a configuration names, and whether it does what its fields say."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from transferkit.errors import UserError, first_line

FILE = "preprocessor_config.json"
DEFAULT = "ViTImageProcessor"
REMEDY = "give `preprocessing` with image_size, interpolation, mean and std"
TRIALS = ((61, 43), (150, 225), (1300, 500))  # heights and widths; some classes cut larger images into tiles


def open_processor(config: Mapping[str, Any], model_type: str | None = None) -> Any:
    """Build the image processor that a configuration describes.

    Args:
        config: content of a ``preprocessor_config.json``; the image processor's part of a ``processor_config.json``.
        model_type: type of the model, whose image processor is taken where the configuration names none.

    Raises:
        UserError: transformers has no such class, or a field that it does not take.
    """
    kind = processor_class(config, model_type)
    if config.get("auto_map"):
        raise unsupported("auto_map", config["auto_map"], f"code of a repository is never run; {REMEDY}")
    fields = {key: value for key, value in config.items() if value is not None and key != "backend"}
    try:
        return kind.from_dict(fields)
    except Exception as error:  # whatever a class makes of fields
        for key, value in fields.items():
            try:
                kind.from_dict({key: value})
            except Exception as reason:
                raise unsupported(key, value, f"{kind.__name__} says: {first_line(reason)}") from error
        raise unsupported("image_processor_type", kind.__name__, first_line(error)) from error


def processor_class(config: Mapping[str, Any], model_type: str | None) -> Any:
    """Return transformers' class, which older files name otherwise (``…FeatureExtractor``, ``…Fast``)."""
    import transformers
    from transformers.models.auto import image_processing_auto

    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    auto: Any = image_processing_auto
    own = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or DEFAULT
    name = str(named or (own if isinstance(own, str) else own.get("torchvision") or DEFAULT))
    name = name.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    kind = getattr(transformers, name, None) if name.endswith("ImageProcessor") else None
    if not isinstance(kind, type):
        raise unsupported("image_processor_type", named, f"transformers has no such class; {REMEDY}")
    return kind


def check_processor(processor: Any, ours: Callable[[Tensor], Tensor]) -> None:
    """Compare what a processor makes of small random images with what its fields say, once per process.

    Whether a class does more than its fields say is not looked up but tried.

    Args:
        processor: of transformers.
        ours: uint8 (3, H, W) -> float32 (3, h, w).

    Raises:
        UserError: it makes something else.
    """
    kind: Any = type(processor)
    try_processor(kind, processor.to_json_string(), ours)


@cache
@torch.no_grad()
def try_processor(kind: Any, fields: str, ours: Callable[[Tensor], Tensor]) -> None:
    """Do what :func:`check_processor` says, with a processor of these fields."""
    name, processor = kind.__name__, kind.from_dict(json.loads(fields))
    for height, width in TRIALS:
        noise = torch.Generator().manual_seed(height)
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=noise)
        mine = ours(image)
        try:
            theirs = processor(images=image, return_tensors="pt", input_data_format="channels_first")
            pixels = torch.as_tensor(theirs["pixel_values"])
        except Exception as error:  # whatever a class does with one image
            raise unsupported("image_processor_type", name, f"{first_line(error)}; {REMEDY}") from error
        if pixels.shape[1:] != mine.shape:
            shape = " x ".join(map(str, pixels.shape[1:]))
            raise unsupported("image_processor_type", name, f"it gives {shape} values per image; {REMEDY}")
        if not torch.allclose(pixels[0].float(), mine, rtol=1e-5, atol=1e-5):
            raise unsupported("image_processor_type", name, f"it does more than its fields say; {REMEDY}")


def unsupported(field: str, value: Any, remedy: str, file: str = FILE) -> UserError:
    """Return the error for a field that cannot be honored."""
    return UserError(f"{file}: {field} {value!r} cannot be honored; {remedy}")
