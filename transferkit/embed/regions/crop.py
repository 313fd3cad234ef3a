"""Method ``crop``: each box is cut out and embedded as its own image."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from torch import Tensor

from transferkit.data.image_table import ImageTable
from transferkit.embed.regions.boxes import Box
from transferkit.embed.stream import Batch, stream
from transferkit.extractor import Extractor
from transferkit.images.decoding import ImageError


def embed_crops(
    extractor: Extractor, images: ImageTable, boxes: Sequence[Box], sizes: dict[str, tuple[int, int]]
) -> Iterator[Batch]:
    """Embed boxes, each through the extractor's preprocessing, including the center crop.

    Corners between pixels are rounded outward.

    Args:
        extractor: the extractor.
        images: the images of the boxes.
        boxes: sorted by path.
        sizes: filled with (height, width) of each image that is read.

    Yields:
        Batches; a row is a position in ``boxes``.
    """
    decoded = lru_cache(maxsize=4)(images.read)  # boxes of one image are consecutive

    def read(position: int) -> Tensor:
        box = boxes[position]
        image = decoded(images.row_of[box.path])
        sizes[box.path] = image.shape[1], image.shape[2]
        return extractor.preprocessing.resize_crop(cut(image, box))

    batches = [range(i, min(i + 32, len(boxes))) for i in range(0, len(boxes), 32)]
    return stream(batches, read, extractor.forward(), device=extractor.device)


def cut(image: Tensor, box: Box) -> Tensor:
    """Return the pixels of a box, clipped to the image: uint8 (3, H, W) -> (3, h, w).

    Raises:
        ImageError: the box does not fit the image, see :meth:`Box.fault`.
    """
    height, width = image.shape[1:]
    if fault := box.fault(height, width):
        raise ImageError("outside", fault)
    inside = box.clip(height, width)
    rows = slice(math.floor(inside.y1), math.ceil(inside.y2))
    return image[:, rows, math.floor(inside.x1) : math.ceil(inside.x2)]
