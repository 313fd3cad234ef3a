"""Method ``crop``: each box is cut out and embedded as an image of its own."""

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
    """Embed boxes, each through the extractor's own preprocessing, its centre crop included.

    Corners between pixels are moved outward to whole ones.

    Args:
        extractor: the extractor.
        images: where the boxes lie.
        boxes: sorted by path.
        sizes: filled with (height, width) of each image that is read.

    Yields:
        Batches; a row is a position in ``boxes``.
    """
    decoded = lru_cache(maxsize=4)(images.read)  # boxes of one image follow each other

    def read(position: int) -> Tensor:
        box = boxes[position]
        image = decoded(images.row_of[box.path])
        sizes[box.path] = image.shape[1], image.shape[2]
        return extractor.preprocessing.resize_crop(cut(image, box))

    return stream([range(i, min(i + 32, len(boxes))) for i in range(0, len(boxes), 32)], read, extractor.forward())


def cut(image: Tensor, box: Box) -> Tensor:
    """The pixels of a box, clipped: uint8 (3, H, W) -> (3, h, w).

    Raises:
        ImageError: it cannot be a box in this image, see :meth:`Box.fault`.
    """
    height, width = image.shape[1:]
    if fault := box.fault(height, width):
        raise ImageError("outside", fault)
    inside = box.clip(height, width)
    rows = slice(math.floor(inside.y1), math.ceil(inside.y2))
    return image[:, rows, math.floor(inside.x1) : math.ceil(inside.x2)]
