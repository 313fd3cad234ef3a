"""What an extractor with a head looked at in images: one explanation per image, in the image's own pixels."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.errors import UserError, listed
from transferkit.extractor.core import ExtractorCore
from transferkit.extractor.grad_cam import GradCam
from transferkit.images.carry_back import carry_back
from transferkit.images.image_source import each_image, read_pixels

BATCH = 16  # images per pass


class Explanation(NamedTuple):
    """What a network looked at in one image.

    Attributes:
        image: uint8 RGB (3, H, W).
        class_name: the class that is explained.
        probability: of that class.
        prediction: the most probable class.
        heat: float32 (H, W) in [0, 1], how much each pixel spoke for the class; 0 where the network saw nothing.
        seen: bool (H, W), what the crop of the preprocessing left.
        embedding: float32 (D,).
    """

    image: Tensor
    class_name: str
    probability: float
    prediction: str
    heat: Tensor
    seen: Tensor
    embedding: Tensor


def explain(extractor: ExtractorCore, images: Iterable[Any], class_name: str | None = None) -> Iterator[Explanation]:
    """Return an iterator that explains images with Grad-CAM, in batches, as they are asked for.

    For the method see :mod:`transferkit.extractor.grad_cam`.

    Args:
        extractor: a trained extractor, on the device to use.
        images: in any form that :meth:`~transferkit.extractor.Extractor.embed` takes.
        class_name: the class to explain; by default each image's prediction.

    Raises:
        UserError: the extractor has no head or no such class, at the call; a file cannot be read as an image, when
            it is asked for.
    """
    grad_cam, names = GradCam(extractor), extractor.class_names
    if class_name is not None and class_name not in names:
        raise UserError(f"`class_name` is {class_name!r}, which is not a class here; the classes: {listed(names)}")
    return explained(extractor, grad_cam, images, None if class_name is None else names.index(class_name))


def explained(
    extractor: ExtractorCore, grad_cam: GradCam, images: Iterable[Any], index: int | None
) -> Iterator[Explanation]:
    """Yield the explanations of images: of the class of an index, or of each image's prediction."""
    names, numbered = extractor.class_names, enumerate(each_image(images))
    while opened := [read_pixels(image, row) for row, image in islice(numbered, BATCH)]:
        pixels = torch.stack([extractor.preprocessing.resize_crop(image) for image in opened])
        maps = grad_cam(pixels, None if index is None else [index] * len(opened))
        share = maps.logits.softmax(1).cpu()
        for row, (image, target) in enumerate(zip(opened, maps.target.tolist(), strict=True)):
            heat, seen = carry_back(maps.heat[row].cpu(), extractor.preprocessing, image.shape[1], image.shape[2])
            best = names[int(share[row].argmax())]
            embedding = maps.embedding[row].cpu()
            yield Explanation(image, names[target], share[row, target].item(), best, heat, seen, embedding)
