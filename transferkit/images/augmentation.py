"""Augmentation: random views of a training image, each determined by an explicit seed only."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from transferkit.errors import UserError
from transferkit.images.error import ImageError
from transferkit.images.from_python import pixels_of
from transferkit.images.preprocessing import Preprocessing

Preset = Literal["none", "light", "trivial", "strong"]


class Augmentation:
    """Random, training-only transform of uint8 pixels, used instead of ``Preprocessing.resize_crop``.

    ``none`` is ``resize_crop`` itself. ``light`` crops at random (half of the area or more), mirrors, and
    varies brightness, contrast and saturation by a tenth. ``trivial`` applies one TrivialAugment operation
    (arXiv:2103.10158), which may turn an image by up to 135 degrees, and keeps the crop. ``strong`` crops down to a
    quarter, mirrors, applies such an operation and erases a rectangle in every fourth image (arXiv:1708.04896).
    ``light`` and ``strong`` mirror left and right: use ``none`` for text and digits.

    torchvision's transforms draw from torch's global CPU generator, which is set from the seed and restored
    afterwards: call it from one thread per process, as data loader workers do.
    """

    def __init__(self, preset: Preset, preprocessing: Preprocessing) -> None:
        """Build the transform.

        Args:
            preset: ``none``, ``light``, ``trivial`` or ``strong``.
            preprocessing: determines size ``(h, w)`` and interpolation of the views; ``none`` applies it.
        """
        size = preprocessing.image_size
        interpolation = InterpolationMode(preprocessing.interpolation)
        presets: dict[Preset, Callable[[], Callable[[Tensor], Tensor]]] = {
            "none": lambda: preprocessing.resize_crop,
            "light": lambda: v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=interpolation),
                    v2.RandomHorizontalFlip(),
                    v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1),
                ]
            ),
            "trivial": lambda: v2.Compose([preprocessing.resize_crop, v2.TrivialAugmentWide()]),
            "strong": lambda: v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=(0.25, 1.0), interpolation=interpolation),
                    v2.RandomHorizontalFlip(),
                    v2.TrivialAugmentWide(),
                    v2.RandomErasing(p=0.25),
                ]
            ),
        }
        self.preset = preset
        self.transform = presets[preset]()

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Make one view.

        Args:
            image: uint8 RGB pixels ``(3, H, W)``.
            seed: determines the view; see ``view_seed``.

        Returns:
            uint8 RGB pixels ``(3, h, w)``.
        """
        if self.preset == "none":
            return self.transform(image)
        view: Tensor = seeded(self.transform, image, seed)
        return view


class OwnTransform:
    """The user's own random transform of training images, before the preprocessing.

    It draws from torch's generator, which is set as for :class:`Augmentation`.

    Args:
        transform: uint8 RGB pixels ``(3, H, W)`` to an image in any form that
            :func:`~transferkit.images.from_python.pixels_of` takes; torchvision's ``v2`` transforms, for example.
        preprocessing: applied to its result.
    """

    def __init__(self, transform: Callable[[Tensor], Any], preprocessing: Preprocessing) -> None:
        self.transform, self.preprocessing = transform, preprocessing

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Make one view: uint8 ``(3, H, W)`` to uint8 ``(3, h, w)``.

        Raises:
            UserError: the result of the transform is not an image.
        """
        try:
            return self.preprocessing.resize_crop(pixels_of(seeded(self.transform, image, seed)))
        except ImageError as error:
            raise UserError(f"transform gives no image: {error}; leave normalizing to the model") from error


def seeded(transform: Callable[[Tensor], Any], image: Tensor, seed: int) -> Any:
    """Call a transform with torch's generator set to a seed, and restore the generator."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every GPU
        return transform(image)
    finally:
        torch.set_rng_state(state)


def view_seed(seed: int, epoch: int, row: int) -> int:
    """Return the seed of the view of one row in one epoch, independent of process and order.

    >>> view_seed(0, epoch=1, row=2) == view_seed(0, epoch=1, row=2) != view_seed(0, epoch=1, row=3)
    True
    """
    return int(np.random.SeedSequence((seed, epoch, row)).generate_state(1, np.uint64)[0])
