"""Thumbnails of a report: small JPEGs in ``data:`` URIs, each once, within a number of bytes."""

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from transferkit.images.decoding import ImageError
from transferkit.runtime.cores import cores
from transferkit.runtime.progress import progress_bar

SIDE = 96
"""Pixels of the longer side."""
QUALITY = 60
BUDGET = 6 * 2**20
"""Characters of all thumbnails together, so that a report stays below 8 MB."""
BATCH = 64


@dataclass
class Thumbnails:
    """Thumbnails by path.

    Attributes:
        uris: path -> ``data:`` URI, in the order of their ids.
        ids: path -> id in the page.
        unread: path -> why there is no thumbnail.
        left_out: how many were not made since the page would grow too large.
    """

    uris: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    left_out: int = 0

    @property
    def ids(self) -> dict[str, str]:
        """Path -> id of its picture in the page."""
        return {path: f"i{number}" for number, path in enumerate(self.uris)}


def make_thumbnails(paths: Sequence[str], read: Callable[[str], Tensor], budget: int = BUDGET) -> Thumbnails:
    """Make thumbnails in order until the budget is spent.

    Args:
        paths: the most important first.
        read: path -> uint8 pixels (3, H, W); raises ImageError.
        budget: characters of all URIs together.
    """
    made, spent = Thumbnails(), 0

    def one(path: str) -> str | ImageError:
        try:
            return thumbnail_uri(read(path))
        except ImageError as error:
            return error

    with progress_bar("report", len(paths)) as advance, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            for path, result in zip(batch, pool.map(one, batch), strict=True):
                if isinstance(result, ImageError):
                    made.unread[path] = str(result)
                elif spent + len(result) <= budget:
                    made.uris[path] = result
                    spent += len(result)
                else:
                    made.left_out += 1
            advance(len(batch))
            if made.left_out:
                made.left_out += len(paths) - start - len(batch)
                break
    return made


def thumbnail_uri(pixels: Tensor, side: int = SIDE) -> str:
    """Return uint8 pixels (3, H, W) as a JPEG of at most ``side`` pixels a side; small ones are enlarged."""
    image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
    if max(image.size) < side:
        factor = side // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        width, height = image.size  # the squarest that a very long image gets is a strip of one pixel
        scale = side / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_uri(path: Path) -> str:
    """Return a PNG file as a ``data:`` URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
