"""Preprocessing: the deterministic way from decoded pixels to a model's input; it travels with the weights.

One frozen value describes it, and training, evaluation, embedding, prediction and export all call it. The
libraries whose weights we load differ in their arithmetic, so that is a field too:

- ``"torchvision"`` (``weights.transforms()``, timm): interpolates in float32 and rounds once; the crop's offset is
  ``round((side - crop) / 2)``, halves to even.
- ``"transformers"`` (image processors, torchvision backend): torch's native uint8 kernel, which rounds after
  each axis; the crop's offset is ``(side - crop) // 2``.
- ``"transformers-float"`` (DINOv3): scales to 0..1 first and resizes in float32 without rounding.

Each is reproduced to 1e-6 on the same decoded pixels.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms._presets import ImageClassification

from transferkit.errors import UserError
from transferkit.images.channel_values import channel_values
from transferkit.images.image_processor import check_processor, open_processor
from transferkit.images.processor_config import from_config, from_pretrained_cfg, to_config
from transferkit.images.resize import (
    MODES,
    Arithmetic,
    Interpolation,
    crop_offset,
    crop_or_pad,
    fitted,
    resize,
    shorten,
)
from transferkit.images.resize import (
    Size as Size,  # for others, too
)
from transferkit.runtime.plain_types import plain

Fit = Literal["exact", "cover", "contain"]
Channels = Literal["rgb", "bgr"]

# Fields that earlier versions did not have.
LATER = {"fit", "fill", "channels"}
# An image so elongated that more pixels than this would be made only to be cropped loses its ends first.
MAX_RESIZED_PIXELS = 2**24


@dataclass(frozen=True)
class Preprocessing:
    """Resize, center crop, scale to 0..1, normalize.

    Args:
        resize: length of the shorter side in pixels, or ``(height, width)``, see ``fit``.
        crop: ``(height, width)`` of the center crop; None keeps the whole resized image. Where it is larger
            than the resized image, the border gets the color ``fill``.
        interpolation: ``bilinear`` and ``bicubic`` are antialiased.
        mean: mean per channel of pixels scaled to 0..1, in the order of ``channels``.
        std: standard deviation per channel of pixels scaled to 0..1, in the order of ``channels``.
        arithmetic: whose rounding is followed, see the module's text.
        fit: what a ``resize`` of two numbers means: the exact size, or a box that the image covers or is
            contained in at its own aspect ratio.
        fill: red, green and blue (0..255) of what a crop adds.
        channels: order in which the model takes the channels.

    Raises:
        UserError: a field is invalid; the message names it.
    """

    resize: int | Size
    crop: Size | None
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    arithmetic: Arithmetic
    fit: Fit = "exact"
    fill: tuple[int, int, int] = (0, 0, 0)
    channels: Channels = "rgb"

    def __post_init__(self) -> None:
        """Check every field; lists become tuples."""
        for name, value in (
            ("resize", self.resize if isinstance(self.resize, int) else whole_size("resize", self.resize)),
            ("crop", None if self.crop is None else whole_size("crop", self.crop)),
            ("mean", triple("mean", self.mean)),
            ("std", triple("std", self.std)),
            ("fill", tuple(int(value) for value in triple("fill", self.fill))),
        ):
            object.__setattr__(self, name, value)
        check(self)

    @classmethod
    def imagenet(cls) -> "Preprocessing":
        """Shorter side 256, center crop 224, as ``ResNet18_Weights.IMAGENET1K_V1.transforms()``."""
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return cls(256, (224, 224), "bilinear", mean, std, "torchvision")

    @classmethod
    def vit(cls) -> "Preprocessing":
        """Squash to 224 x 224, as ``ViTImageProcessor()``."""
        return cls((224, 224), None, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "transformers")

    @classmethod
    def from_torchvision(cls, transforms: Callable[..., Any]) -> "Preprocessing":
        """Read the preset that torchvision's classification weights bring (``weights.transforms()``).

        Raises:
            UserError: ``transforms`` is something else, or not antialiased.
        """
        if not isinstance(transforms, ImageClassification):
            raise UserError(
                f"transforms: {type(transforms).__name__} is not torchvision's ImageClassification preset;"
                " state resize, crop, interpolation, mean and std instead"
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
    def from_hf(cls, config: Mapping[str, Any], model_type: str | None = None) -> "Preprocessing":
        """Read a Hugging Face ``preprocessor_config.json``.

        The class that it names reads it and fills in its own defaults; what it then does to an image is compared
        with what the fields say.

        Args:
            config: content of the file.
            model_type: type of the model, whose image processor is taken where the file names none.

        Raises:
            UserError: a field cannot be honored, or the class does more than its fields say.
        """
        processor = open_processor(config, model_type)
        scheme = cls(**from_config(config, processor))
        if scheme.arithmetic != "torchvision":
            check_processor(processor, scheme)
        return scheme

    def to_hf(self) -> dict[str, Any]:
        """The content of a ``preprocessor_config.json`` that transformers' ``AutoImageProcessor`` loads.

        transformers then gives the same pixels where ``arithmetic`` is its own. Where it is torchvision's,
        they are within one gray level, one pixel off along an axis whose resized length less the crop
        is 3 modulo 4, and cropped instead of padded. ``from_hf`` returns this very object in either case.
        """
        return to_config(self.to_dict())

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read the ``pretrained_cfg`` in the ``config.json`` of timm's weights.

        Raises:
            UserError: a field cannot be honored; the message names it.
        """
        return cls(**from_pretrained_cfg(config))

    @classmethod
    def from_fields(cls, given: Mapping[str, Any]) -> "Preprocessing":
        """From fields of :meth:`replace` alone, where nothing else is known of the weights.

        Raises:
            UserError: size, mean or std is missing, or a field makes no sense.
        """
        if not is_complete(given):
            raise UserError("`preprocessing` needs image_size (or resize and crop), mean and std")
        return cls.vit().override(given)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of ``to_dict``.

        Raises:
            UserError: a key is missing or unknown, or its value makes no sense.
        """
        names = {field.name for field in fields(cls)}
        for key in sorted(names.symmetric_difference(plain) - (LATER - set(plain))):
            problem = "missing from" if key in names else "unknown to"
            raise UserError(f"{key}: {problem} the preprocessing; it takes {', '.join(sorted(names))}")
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, as JSON and YAML hold them; fields that came later are left out at their defaults."""
        defaults = {field.name: field.default for field in fields(self) if field.name in LATER}
        given = {key: value for key, value in asdict(self).items() if value != defaults.get(key, ...)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}

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
        """A copy with some fields changed; None leaves a field as it is.

        Args:
            image_size: side, or (height, width), of what the model sees: the crop where there is one, the
                shorter side then keeping its ratio to it (64 makes 256/224 into 73/64); else the exact size.
            resize: as the field; goes with ``crop``, not with ``image_size``.
            crop: as the field, or one number for a square.
            interpolation: as the field.
            mean: as the field.
            std: as the field.

        Raises:
            UserError: values that contradict each other or make no sense, the field named.
        """
        changed: dict[str, Any] = {"interpolation": interpolation, "mean": mean, "std": std, "resize": resize}
        changed["crop"] = (crop, crop) if isinstance(crop, int) else crop
        if image_size is not None:
            if resize is not None or crop is not None:
                raise UserError("image_size: contradicts resize and crop; give either it or them")
            changed |= sized(self, (image_size, image_size) if isinstance(image_size, int) else image_size)
        copy = Preprocessing(**{**vars(self), **{k: v for k, v in changed.items() if v is not None}})
        if changed["resize"] is not None or changed["crop"] is not None:
            check_crop(copy)
        return copy

    def in_words(self) -> str:
        """Return all that it does in a few words, for a message."""
        size = "resized to" if self.crop is None else "cropped to"
        resize = self.resize if isinstance(self.resize, int) else " x ".join(map(str, self.resize))
        start = "" if self.crop is None else f"resized to {'' if self.fit == 'exact' else f'{self.fit} '}{resize}, "
        mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        sides = " x ".join(map(str, self.image_size))
        order = "" if self.channels == "rgb" else f", channels in the order {self.channels.upper()}"
        return f"{start}{size} {sides}, {self.interpolation}, mean {mean}, std {std}{order}"

    def override(self, given: Mapping[str, Any]) -> "Preprocessing":
        """:meth:`replace` with fields as a user gives them.

        Raises:
            UserError: see :meth:`replace`; a field that there is not; no mapping.
        """
        if not isinstance(given, Mapping):
            raise UserError(f"`preprocessing` is {given!r}; give a dict, such as {{'image_size': 160}}")
        known = list(inspect.signature(self.replace).parameters)
        if unknown := set(given) - set(known):
            raise UserError(f"`preprocessing` has no field {min(map(str, unknown))!r}; it takes {', '.join(known)}")
        return self.replace(**plain(dict(given)))

    @property
    def image_size(self) -> Size:
        """(height, width) of what the model sees."""
        if self.crop is not None:
            return self.crop
        assert not isinstance(self.resize, int)  # refused by _check
        return self.resize

    def resized_size(self, height: int, width: int) -> Size:
        """Return (height, width) of an image of this size after the resize, rounded as in the libraries."""
        if not isinstance(self.resize, int):
            return self.resize if self.fit == "exact" else fitted(height, width, self.resize, self.fit == "cover")
        longer = int(self.resize * max(height, width) / min(height, width))
        return (longer, self.resize) if width <= height else (self.resize, longer)

    def crop_offset(self, height: int, width: int) -> Size:
        """Return (top, left) of the crop in a resized image of this size; negative where the crop is larger."""
        return crop_offset((height, width), self.crop or (height, width), self.arithmetic)

    def resize_crop(self, image: Tensor, exact: bool = True) -> Tensor:
        """Resize and crop one image.

        Args:
            image: uint8 (3, H, W), RGB, 0..255.
            exact: resize in the library's own arithmetic; else always in integers, within a gray level of it and in
                a third of the time: for bfloat16, which holds no finer differences.

        Returns:
            uint8 (3, *image_size), RGB; float32, 0..255, where ``arithmetic`` does not round.
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"expected uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
        image = self.shortened(image)
        size = self.resized_size(*image.shape[-2:])
        resized = resize(image, size, self.interpolation, self.arithmetic if exact else "transformers")
        return crop_or_pad(resized, self.crop_offset(*size), self.image_size, self.fill)

    def shortened(self, image: Tensor) -> Tensor:
        """Return an image (3, H, W) without the ends of its longer side that would be resized for nothing."""
        if not (isinstance(self.resize, int) or self.fit == "cover"):
            return image
        shorter = self.resize if isinstance(self.resize, int) else max(self.resize)
        return shorten(image, limit=MAX_RESIZED_PIXELS // shorter**2)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale to 0..1, put the channels in the model's order, subtract the mean, divide by the standard deviation.

        Args:
            pixels: uint8 (..., 3, h, w), RGB, 0..255, on any device, or what :meth:`resize_crop` returns.

        Returns:
            float32 (..., 3, h, w) on the same device.
        """
        floats = pixels.dtype == torch.float32 and self.arithmetic == "transformers-float"
        if not (floats or pixels.dtype == torch.uint8) or pixels.ndim < 3 or pixels.shape[-3] != 3:
            raise ValueError(f"expected uint8 (..., 3, h, w), got {pixels.dtype} {tuple(pixels.shape)}")
        return self.scale(pixels, *(channel_values(values, pixels.device) for values in (self.mean, self.std)))

    def scale(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return what :meth:`normalize` does, by mean and standard deviation (3, 1, 1) on the pixels' device."""
        return (self.ordered(pixels).to(torch.float32) / 255).sub_(mean).div_(std)

    def ordered(self, pixels: Tensor) -> Tensor:
        """Return RGB pixels (..., 3, h, w) with the channels in the order that the model takes them."""
        return pixels.flip(-3) if self.channels == "bgr" else pixels

    def __call__(self, image: Tensor) -> Tensor:
        """Return ``normalize(resize_crop(image))``: uint8 (3, H, W) to float32 (3, *image_size)."""
        return self.normalize(self.resize_crop(image))


def is_complete(given: Mapping[str, Any]) -> bool:
    """Whether fields of :meth:`Preprocessing.replace` say all that the weights' own preprocessing would."""
    sized = given.get("image_size") is not None or given.get("resize") is not None
    return sized and given.get("mean") is not None and given.get("std") is not None


def sized(preprocessing: Preprocessing, image_size: Size) -> dict[str, Any]:
    """Return ``resize`` and ``crop`` for another size of what the model sees; see :meth:`Preprocessing.replace`."""
    image_size = whole_size("image_size", image_size)
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


def whole_size(name: str, value: Any) -> Size:
    """Return (height, width), or raise a UserError that names the field."""
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 2 or not all(type(side) is int and side >= 1 for side in numbers):
        raise UserError(f"{name}: {value!r} is not a size; give (height, width) in whole pixels, 1 or more each")
    return numbers


def triple(name: str, value: Any) -> tuple[float, float, float]:
    """Return three finite numbers, or raise a UserError that names the field."""
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{name}: {value!r} is not three finite numbers; give one each for red, green and blue")
    red, green, blue = map(float, numbers)
    return red, green, blue


def check(it: Preprocessing) -> None:
    """Raise a UserError if a field is invalid; the message names it."""
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
            raise UserError(f"crop: needed with resize {it.resize}, or images would differ in size; give one")
    for field, value, choices in (("fit", it.fit, get_args(Fit)), ("channels", it.channels, get_args(Channels))):
        if value not in choices:
            raise UserError(f"{field}: {value!r} is not known; choose one of {', '.join(choices)}")
    if it.fit == "contain" and it.crop is None:
        raise UserError("crop: needed with fit 'contain', or images would differ in size; give one")


def check_crop(it: Preprocessing) -> None:
    """Refuse a crop that is larger than the resized image.

    Raises:
        UserError: it is. Weights may bring such a crop, which pads; nobody gives it on purpose.
    """
    height, width = (it.resize, it.resize) if isinstance(it.resize, int) else it.resize
    if it.crop is not None and (it.crop[0] > height or it.crop[1] > width):
        raise UserError(f"crop: {it.crop} is larger than the resized image, resize {it.resize}; make it smaller")
