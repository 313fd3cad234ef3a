"""Method ``roi_align``: one forward pass per image, boxes pooled from its features (He et al. 2017, arXiv:1703.06870).

The image is resized by the preprocessing but not cropped, so that its borders are kept, and to whole strides of the
network, so that the features cover it exactly. A network with a fixed size gets that size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import roi_align

from transferkit.backbones.token_grid import as_grid
from transferkit.data.image_table import ImageTable
from transferkit.embed.regions.boxes import Box
from transferkit.embed.stream import Batch, stream
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.images.error import Fault, ImageError
from transferkit.images.preprocessing import Size

BINS = 7  # roi_align averages samples in 7 x 7 bins, at least one per feature cell; the bins are averaged


def embed_aligned(
    extractor: Extractor, images: ImageTable, boxes: Sequence[Box], sizes: dict[str, tuple[int, int]]
) -> Iterator[Batch]:
    """Embed boxes from the last features of their images: the map before pooling, or the grid of patch tokens.

    The embedding is the mean of the features inside the box, bilinear between cells, for any pooling of the extractor,
    since a box has no class token.

    Args:
        extractor: the extractor.
        images: the images of the boxes.
        boxes: sorted by path.
        sizes: filled with (height, width) of each image that is read.

    Yields:
        One batch per image; a row is a position in ``boxes``.
    """
    spans = spans_of(boxes)
    unpooled = extractor.forward(features="unpooled")
    sizing = Sizing(unpooled)

    def read(number: int) -> Tensor:
        path = boxes[spans[number].start].path
        image = images.read(images.row_of[path])
        sizes[path] = image.shape[1], image.shape[2]
        scheme = replace(extractor.preprocessing, resize=sizing(*image.shape[1:]), crop=None)
        return scheme.resize_crop(image)

    def forward(pixels: Tensor) -> Tensor:
        return as_map(unpooled(pixels), *pixels.shape[2:])

    batches = [range(i, i + 1) for i in range(len(spans))]
    for number, batch in enumerate(stream(batches, read, forward, device=extractor.device)):
        span = spans[number]
        if not batch.rows:
            yield Batch([], torch.empty(0, 0), dict.fromkeys(span, batch.broken[number]))
            continue
        yield pool(batch.embedding, span, boxes, sizes[boxes[span.start].path])


def pool(features: Tensor, span: range, boxes: Sequence[Box], size: tuple[int, int]) -> Batch:
    """Pool one image's boxes from its features (1, C, h, w); ``size`` is (height, width) of the image."""
    broken = {row: Fault("outside", fault) for row in span if (fault := boxes[row].fault(*size))}
    inside = {row: boxes[row].clip(*size) for row in span if row not in broken}
    rows = list(inside)
    (height, width), (h, w) = size, features.shape[2:]
    scale = torch.tensor([w / width, h / height] * 2, dtype=torch.float64)
    corners = torch.tensor([inside[row][2:6] for row in rows], dtype=torch.float64).reshape(-1, 4) * scale
    pooled: Tensor = roi_align(features, [corners.to(features.dtype)], BINS, aligned=True)  # (K, C, 7, 7)
    return Batch(rows, pooled.mean((2, 3)), broken)


class Sizing:
    """The size to which an image is resized: (height, width) -> (height, width).

    Args:
        forward: the forward pass with ``features="unpooled"``.

    Raises:
        UserError: the features do not lie in a grid.
    """

    def __init__(self, forward: Forward) -> None:
        self.scheme = forward.preprocessing
        height, width = self.scheme.image_size

        def grid(height: int, width: int) -> Size:
            features = as_map(forward(torch.zeros(1, 3, height, width, dtype=torch.uint8)), height, width)
            return features.shape[2], features.shape[3]

        rows, columns = grid(height, width)
        self.stride = -(-height // rows), -(-width // columns)
        try:
            self.any_size = grid(height + self.stride[0], width + 2 * self.stride[1]) == (rows + 1, columns + 2)
        except (TypeError, ValueError, RuntimeError, AssertionError, UserError):  # it takes only one size
            self.any_size = False

    def __call__(self, height: int, width: int) -> Size:
        """Return the size for an image of this height and width."""
        if not self.any_size:
            return self.scheme.image_size
        resized = self.scheme.resized_size(height, width)
        down, across = (max(1, round(side / s)) * s for side, s in zip(resized, self.stride, strict=True))
        if down * across > 2**22:
            detail = f"{width} x {height} pixels are too elongated for a forward pass without a crop"
            raise ImageError("too_large", detail)
        return down, across


def as_map(features: Tensor, height: int, width: int) -> Tensor:
    """Return features as a map (B, C, h, w); tokens (B, T, C) become the grid nearest to the image's aspect ratio.

    Args:
        features: a map, or patch tokens in row-major order.
        height: of the pixels.
        width: of the pixels.

    Raises:
        UserError: the features are neither.
    """
    if features.ndim == 4:
        return features
    if features.ndim != 3:
        raise UserError(f'features of shape {tuple(features.shape)} do not form a grid; give `method="crop"`')
    return as_grid(features, height, width)


def spans_of(boxes: Sequence[Box]) -> list[range]:
    """Return the positions of the boxes of each image, for boxes sorted by path."""
    starts = [i for i, box in enumerate(boxes) if i == 0 or box.path != boxes[i - 1].path]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(boxes)], strict=True)]
