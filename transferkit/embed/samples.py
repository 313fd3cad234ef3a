"""Images of a table that the ranges of a network in int8 are measured on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256

import torch
from torch import Tensor

from transferkit.data.image_table import ImageTable
from transferkit.embed.embedding_space import space_of
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.quantization import Quantization, Samples
from transferkit.images.error import ImageError

IMAGES = 64  # more of them hardly change a range
TRAIN = "train"


def quantization_of(extractor: Extractor, table: ImageTable, images: int = IMAGES) -> Quantization:
    """Return how an extractor becomes one in int8, by images of a table; they are decoded when they are needed.

    Args:
        extractor: the extractor, in any precision.
        table: its images of split ``train`` are used, if it has any; otherwise all. Unreadable ones are left out.
        images: how many are used, evenly spaced in path order.
    """
    rows = spread([row for row, split in enumerate(table.splits) if split == TRAIN] or list(range(len(table))), images)
    chosen = table.select(rows)
    space = replace(space_of(extractor, precision="32"), engine="torch", quantization=None)
    return Quantization(Samples(content_of(chosen), partial(read_all, extractor, chosen)), space.sha256)


def spread(rows: list[int], count: int) -> list[int]:
    """Return ``count`` of the rows, evenly spaced, or all if there are fewer."""
    count = min(count, len(rows))
    return [rows[position * len(rows) // count] for position in range(count)]


def content_of(table: ImageTable) -> str:
    """Return the SHA-256 over the content of a table's images, wherever they lie."""
    return sha256(json.dumps(list(hashes(table))).encode()).hexdigest()


def hashes(table: ImageTable) -> Iterator[str | None]:
    """Yield the hash of each image, ``None`` for a file that cannot be read."""
    if table.in_memory:
        yield from table.stamps()
        return
    for path in table.paths:
        try:
            yield from table.content_hashes([path]).values()
        except OSError:
            yield None


def read_all(extractor: Extractor, table: ImageTable) -> Tensor:
    """Return the images of a table that can be read, preprocessed: uint8 (N, 3, h, w).

    Raises:
        UserError: none can.
    """
    found = []
    for row in range(len(table)):
        try:
            found.append(extractor.preprocessing.resize_crop(table.read(row)))
        except ImageError:  # named by the command that embeds them
            continue
    if not found:
        raise UserError(f"none of {len(table)} images of {table.source} can be read; scan them to see why")
    return torch.stack(found)
