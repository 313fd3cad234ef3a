"""Images of a table that the ranges of a network in int8 are measured on."""

import json
from collections.abc import Iterator
from dataclasses import replace
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
    chosen = chosen_of(table, images)
    space = replace(space_of(extractor, precision="32"), engine="torch", quantization=None)
    return Quantization(samples_of(extractor, chosen), space.sha256)


def chosen_of(table: ImageTable, images: int = IMAGES) -> ImageTable:
    """Return evenly spaced images, of split ``train`` if there is one."""
    rows = [row for row, split in enumerate(table.splits) if split == TRAIN]
    return table.select(spread(rows or list(range(len(table))), images))


def samples_of(extractor: Extractor, table: ImageTable) -> Samples:
    """Return all images of a table as samples."""
    return Samples(content_of(table), lambda: read_rows(extractor, table, list(range(len(table))))[1])


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


def read_rows(extractor: Extractor, table: ImageTable, rows: list[int]) -> tuple[list[int], Tensor]:
    """Return the rows that can be read, and their images, preprocessed: uint8 (N, 3, h, w).

    Raises:
        UserError: none can be read.
    """
    found: dict[int, Tensor] = {}
    for row in rows:
        try:
            found[row] = extractor.preprocessing.resize_crop(table.read(row))
        except ImageError:  # named by the command that embeds them
            continue
    if not found:
        raise UserError(f"none of {len(rows)} images of {table.source} can be read; scan them to see why")
    return list(found), torch.stack(list(found.values()))
