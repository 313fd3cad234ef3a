"""Preprocessing: the deterministic transform from decoded pixels to a model's input, stored with the weights.

One frozen value describes it, and training, evaluation, embedding, prediction and export all call it. The two
libraries whose weights are loaded differ in their arithmetic, so that is a field too:

- ``"torchvision"`` (``weights.transforms()``): interpolates in float32 and rounds once; the crop's offset is
  ``round((side - crop) / 2)``, halves to even.
- ``"transformers"`` (image processors, torchvision backend): torch's native uint8 kernel, which rounds after
  each axis; the crop's offset is ``(side - crop) // 2``.

Each is reproduced to 1e-6 on the same decoded pixels.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F_v1
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import functional as F_v2

from transferkit.errors import UserError
from transferkit.images.processor_config import from_config, from_pretrained_cfg, to_config

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Arithmetic = Literal["torchvision", "transformers"]
Size = tuple[int, int]

# The ends of an elongated picture are cut off first if its resized version would have more pixels than this.
MAX_RESIZED_PIXELS = 2**24
# Above this torchvision's float32 resize processes one channel at a time, to limit memory.
LARGE_PIXELS = 2**24

MODES = {
    "nearest": InterpolationMode.NEAREST_EXACT,  # as Pillow; torch's "nearest" is half a pixel off
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, center crop, scale to 0..1, normalize.

    Args:
        resize: the length of the shorter side in pixels, or the exact ``(height, width)``.
        crop: ``(height, width)`` of the center crop; None keeps the whole resized picture.
        interpolation: ``bilinear`` and ``bicubic`` are antialiased.
        mean: per channel (R, G, B), of pixels scaled to 0..1.
        std: per channel (R, G, B), of pixels scaled to 0..1.
        arithmetic: the library whose rounding is reproduced, see the module's docstring.

    Raises:
        UserError: a field has an invalid value.
    """

    resize: int | Size
    crop: Size | None
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    arithmetic: Arithmetic

    def __post_init__(self) -> None:
        """Validate every field; lists become tuples."""
        for name, value in (
            ("resize", self.resize if isinstance(self.resize, int) else check_size("resize", self.resize)),
            ("crop", None if self.crop is None else check_size("crop", self.crop)),
            ("mean", check_triple("mean", self.mean)),
            ("std", check_triple("std", self.std)),
        ):
            object.__setattr__(self, name, value)
        check(self)

    @classmethod
    def imagenet(cls) -> "Preprocessing":
        """Return shorter side 256, center crop 224, as ``ResNet18_Weights.IMAGENET1K_V1.transforms()``.

        >>> Preprocessing.imagenet().image_size
        (224, 224)
        """
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return cls(256, (224, 224), "bilinear", mean, std, "torchvision")

    @classmethod
    def vit(cls) -> "Preprocessing":
        """Return squash to 224 x 224, as ``ViTImageProcessor()``."""
        return cls((224, 224), None, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "transformers")

    @classmethod
    def from_torchvision(cls, transforms: Callable[..., Any]) -> "Preprocessing":
        """Read the preset of torchvision's classification weights (``weights.transforms()``).

        Raises:
            UserError: ``transforms`` is of another class, or not antialiased.
        """
        if not isinstance(transforms, ImageClassification):
            raise UserError(
                f"transforms: {type(transforms).__name__} is not torchvision's ImageClassification preset;"
                " give resize, crop, interpolation, mean and std instead"
            )
        names = {mode: name for name, mode in MODES.items()}
        if transforms.interpolation not in names or not transforms.antialias:
            raise UserError(
                f"transforms: interpolation {transforms.interpolation.value!r} with antialias"
                f" {transforms.antialias} is not supported; choose one of {', '.join(MODES)}"
            )
        resize, crop = list(transforms.resize_size), list(transforms.crop_size)
        return cls(
            resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
            crop=(crop[0], crop[-1]),
            interpolation=names[transforms.interpolation],  # type: ignore[arg-type]  # keys of MODES
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            arithmetic="torchvision",
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read a Hugging Face ``preprocessor_config.json``.

        Args:
            config: its content; missing fields have the defaults of the class in it.

        Raises:
            UserError: a field is not supported.
        """
        return cls(**from_config(config))

    def to_hf(self) -> dict[str, Any]:
        """Return the content of a ``preprocessor_config.json`` that transformers' ``AutoImageProcessor`` loads.

        With the arithmetic of transformers it gives the same pixels. With that of torchvision they are within one
        gray level, and shifted by one pixel along an axis whose resized length minus the crop is 3 modulo 4.
        ``from_hf`` returns an equal object in both cases.
        """
        return to_config(self.to_dict())

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read the ``pretrained_cfg`` in the ``config.json`` of timm's weights.

        Raises:
            UserError: a field is not supported.
        """
        return cls(**from_pretrained_cfg(config))

    @classmethod
    def from_fields(cls, given: Mapping[str, Any]) -> "Preprocessing":
        """Return a preprocessing from fields of :meth:`replace`, for weights without one.

        Raises:
            UserError: size, mean or std is missing, or a field has an invalid value.
        """
        if not is_complete(given):
            raise UserError("`preprocessing` is incomplete; give image_size (or resize and crop), mean and std")
        return cls.vit().override(given)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that ``to_dict`` has written.

        Raises:
            UserError: a key is missing or unknown, or its value is invalid.
        """
        names = {field.name for field in fields(cls)}
        for key in sorted(names.symmetric_difference(plain)):
            problem = "missing from" if key in names else "unknown to"
            raise UserError(f"{key}: {problem} the preprocessing; it takes {', '.join(sorted(names))}")
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in plain types, for JSON and YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def replace(
        self,
        *,
        image_size: int | Size | None = None,
        resize: int | Size | None = None,
        crop: int | Size | None = None,
        interpolation: Interpolation | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Preprocessing":
        """Return a copy with some fields changed; None leaves a field as it is.

        >>> small = Preprocessing.imagenet().replace(image_size=64)
        >>> small.resize, small.crop
        (73, (64, 64))

        Args:
            image_size: side, or (height, width), of the model's input: of the crop if there is one (the shorter side
                keeps its ratio to it), otherwise of the exact resize.
            resize: as the field; goes with ``crop``, not with ``image_size``.
            crop: as the field, or one number for a square.
            interpolation: as the field.
            mean: as the field.
            std: as the field.

        Raises:
            UserError: values contradict each other or are invalid.
        """
        changed: dict[str, Any] = {"interpolation": interpolation, "mean": mean, "std": std, "resize": resize}
        changed["crop"] = (crop, crop) if isinstance(crop, int) else crop
        if image_size is not None:
            if resize is not None or crop is not None:
                raise UserError("image_size: contradicts resize and crop; give either it or them")
            changed |= sized(self, (image_size, image_size) if isinstance(image_size, int) else image_size)
        return Preprocessing(**{**vars(self), **{k: v for k, v in changed.items() if v is not None}})

    def in_words(self) -> str:
        """Return a short description for a message.

        >>> Preprocessing.vit().in_words()
        'resized to 224 x 224, bilinear, mean 0.5/0.5/0.5, std 0.5/0.5/0.5'
        """
        size = "resized to" if self.crop is None else "cropped to"
        resize = self.resize if isinstance(self.resize, int) else " x ".join(map(str, self.resize))
        start = "" if self.crop is None else f"resized to {resize}, "
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        sides = " x ".join(map(str, self.image_size))
        return f"{start}{size} {sides}, {self.interpolation}, mean {mean}, std {std}"

    def override(self, given: Mapping[str, Any]) -> "Preprocessing":
        """Return :meth:`replace` with fields that a user gives.

        Raises:
            UserError: a field is unknown; values contradict each other or are invalid.
        """
        known = list(inspect.signature(self.replace).parameters)
        if unknown := set(given) - set(known):
            raise UserError(f"`preprocessing` has no field {min(map(str, unknown))!r}; it takes {', '.join(known)}")
        return self.replace(**given)

    @property
    def image_size(self) -> Size:
        """(height, width) of the model's input."""
        if self.crop is not None:
            return self.crop
        assert not isinstance(self.resize, int)  # refused by check
        return self.resize

    def resized_size(self, height: int, width: int) -> Size:
        """Return the (height, width) of a picture of this size after the resize, rounded as in both libraries.

        >>> Preprocessing.imagenet().resized_size(480, 640)
        (256, 341)
        """
        if not isinstance(self.resize, int):
            return self.resize
        longer = int(self.resize * max(height, width) / min(height, width))
        return (longer, self.resize) if width <= height else (self.resize, longer)

    def crop_offset(self, height: int, width: int) -> Size:
        """Return the (top, left) of the crop in a resized picture of this size."""
        crop = self.crop or (height, width)
        if self.arithmetic == "torchvision":
            return round((height - crop[0]) / 2), round((width - crop[1]) / 2)
        return (height - crop[0]) // 2, (width - crop[1]) // 2

    def resize_crop(self, image: Tensor, exact: bool = True) -> Tensor:
        """Resize and crop one picture.

        Args:
            image: uint8 (3, H, W), RGB, 0..255.
            exact: resize in the library's own arithmetic; otherwise in integers, within one gray level of it and in
                a third of the time: for bfloat16, which has no finer differences.

        Returns:
            uint8 (3, *image_size).
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"expected uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
        if isinstance(self.resize, int):
            image = shorten(image, limit=MAX_RESIZED_PIXELS // self.resize**2)
        size = self.resized_size(*image.shape[-2:])
        (top, left), (height, width) = self.crop_offset(*size), self.image_size
        mode = MODES[self.interpolation]
        if self.arithmetic == "transformers" or not exact:
            resized: Tensor = F_v2.resize(image, list(size), interpolation=mode, antialias=True)
        else:
            parts = torch.split(image, 1 if image[0].numel() > LARGE_PIXELS else 3)
            resized = torch.cat([F_v1.resize(part, list(size), interpolation=mode, antialias=True) for part in parts])
        return resized[:, top : top + height, left : left + width].contiguous()  # (3, h, w)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale to 0..1, subtract the mean, divide by the standard deviation.

        Args:
            pixels: uint8 (..., 3, h, w) on any device.

        Returns:
            float32 (..., 3, h, w) on the same device.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-3] != 3:
            raise ValueError(f"expected uint8 (..., 3, h, w), got {pixels.dtype} {tuple(pixels.shape)}")
        # explicit, since torch's default dtype may have been changed
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device)[:, None, None]
        return (pixels.to(torch.float32) / 255).sub_(mean).div_(std)

    def __call__(self, image: Tensor) -> Tensor:
        """Return ``normalize(resize_crop(image))``: uint8 (3, H, W) to float32 (3, *image_size)."""
        return self.normalize(self.resize_crop(image))


def is_complete(given: Mapping[str, Any]) -> bool:
    """Return whether fields of :meth:`Preprocessing.replace` define size, mean and std."""
    sized = given.get("image_size") is not None or given.get("resize") is not None
    return sized and given.get("mean") is not None and given.get("std") is not None


def shorten(image: Tensor, limit: int) -> Tensor:
    """Return the center of a picture whose longer side exceeds ``limit`` times the shorter, otherwise the picture.

    >>> shorten(torch.zeros(3, 10, 100), limit=4).shape
    torch.Size([3, 10, 40])
    """
    height, width = image.shape[-2:]
    longest = max(1, limit) * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[:, top : top + longest, left : left + longest]


def sized(preprocessing: Preprocessing, image_size: Size) -> dict[str, Any]:
    """Return the fields to change for another size of the model's input."""
    image_size = check_size("image_size", image_size)
    if preprocessing.crop is None:
        return {"resize": image_size}
    if isinstance(preprocessing.resize, int):
        ratio = preprocessing.resize / max(preprocessing.crop)
        return {"resize": round(max(image_size) * ratio), "crop": image_size}
    height, width = (
        round(side * full / part)
        for side, full, part in zip(image_size, preprocessing.resize, preprocessing.crop, strict=True)
    )
    return {"resize": (height, width), "crop": image_size}


def check_size(name: str, value: Any) -> Size:
    """Return a size as a tuple, or raise UserError."""
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 2 or not all(type(side) is int and side >= 1 for side in numbers):
        raise UserError(f"{name}: {value!r} is not a size; give (height, width) in whole pixels, 1 or more each")
    return numbers


def check_triple(name: str, value: Any) -> tuple[float, float, float]:
    """Return one number per channel as a tuple, or raise UserError."""
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{name}: {value!r} is not three finite numbers; give one for each of red, green and blue")
    red, green, blue = map(float, numbers)
    return red, green, blue


def check(it: Preprocessing) -> None:
    """Raise UserError for an invalid value."""
    if it.interpolation not in get_args(Interpolation):
        known = ", ".join(get_args(Interpolation))
        raise UserError(f"interpolation: {it.interpolation!r} is not supported; choose one of {known}")
    if it.arithmetic not in get_args(Arithmetic):
        known = ", ".join(get_args(Arithmetic))
        raise UserError(f"arithmetic: {it.arithmetic!r} is not known; choose one of {known}")
    if min(it.std) <= 0:
        raise UserError(f"std: {list(it.std)} must be above 0 in every channel")
    if isinstance(it.resize, int):
        if type(it.resize) is not int or it.resize < 1:
            raise UserError(f"resize: {it.resize!r} is not a side; give 1 or more whole pixels")
        if it.crop is None:
            raise UserError(f"crop: missing; with resize {it.resize} alone pictures differ in size, so give one")
    height, width = (it.resize, it.resize) if isinstance(it.resize, int) else it.resize
    if it.crop is not None and (it.crop[0] > height or it.crop[1] > width):
        raise UserError(f"crop: {it.crop} is larger than the resized picture, resize {it.resize}; make it smaller")
