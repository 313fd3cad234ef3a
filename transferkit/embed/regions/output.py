"""Embedding boxes into a Parquet table: one row per box, with its corners."""

import json
import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from transferkit.data.asked import check_same
from transferkit.data.embeddings import Embeddings, to_arrow
from transferkit.data.embeddings import metadata_of as read_metadata
from transferkit.data.image_table import ImageTable
from transferkit.embed import describe
from transferkit.embed.regions.align import embed_aligned
from transferkit.embed.regions.boxes import Box
from transferkit.embed.regions.crop import embed_crops
from transferkit.embed.stream import check_finite
from transferkit.errors import UserError, listed
from transferkit.extractor import Extractor
from transferkit.runtime.files import atomic_path, check_folder, check_parquet, check_place
from transferkit.runtime.progress import progress_bar

log = logging.getLogger(__name__)

Method = Literal["crop", "roi_align"]
QUESTION = {  # metadata that the rows depend on -> how a message names them
    "extractor": "extractor",
    "space": "weights, preprocessing or pooling",
    "method": "method",
    "data_fingerprint": "images",
    "boxes_sha256": "boxes",
}


@dataclass(frozen=True)
class Regions:
    """Embeddings of boxes.

    Attributes:
        embeddings: one row per box, sorted by path, then by number; labels are those of the boxes.
        boxes: the box of each row, clipped to its image.
        clipped: the boxes that extended beyond their image, before clipping.
        broken: number of a box without an embedding -> the reason.
    """

    embeddings: Embeddings
    boxes: Sequence[Box]
    clipped: Sequence[Box]
    broken: Mapping[int, str]


def embed_regions(
    extractor: Extractor, images: ImageTable, boxes: Sequence[Box], method: Method = "crop", on_error: str = "fail"
) -> Regions:
    """Embed boxes; only images with boxes are read.

    Args:
        extractor: the extractor, on the device to use.
        images: the images of the boxes, see :func:`~transferkit.embed.regions.match_boxes`.
        boxes: in any order.
        method: ``crop`` preprocesses each box as an image; ``roi_align`` embeds each image once, without a crop, and
            pools its features in each box.
        on_error: ``fail`` names boxes outside of their image and unreadable images after the pass, ``skip`` leaves
            these boxes out.

    Raises:
        UserError: a box has no pixels, with ``fail``; no box is left; an embedding holds NaN or infinity.
    """
    if method == "roi_align" and extractor.precision != "int8" and extractor.engine != "torch":
        log.warning("%s takes one image size, roi_align needs any: PyTorch runs the network instead", extractor.engine)
    extractor = running(extractor, method)
    boxes = sorted(boxes, key=lambda box: (box.path, box.number))
    sizes: dict[str, tuple[int, int]] = {}
    work = {"crop": embed_crops, "roi_align": embed_aligned}[method](extractor, images, boxes, sizes)
    rows: list[int] = []
    parts = []
    broken: dict[int, str] = {}
    with progress_bar(f"embedding with {extractor.name}", len(boxes), "boxes") as advance:
        for batch in work:
            check_finite(batch, [box.path for box in boxes])
            rows += batch.rows
            parts += [batch.embedding] if batch.rows else []
            broken |= {boxes[row].number: f"{boxes[row].path!r}: {why}" for row, why in batch.broken.items()}
            advance(len(batch.rows) + len(batch.broken))
    if broken and (on_error == "fail" or not rows):
        named = listed([f"row {number}: {reason}" for number, reason in broken.items()], quote=False, separator="; ")
        raise UserError(f'{len(broken)} boxes have no pixels: {named}; correct them, or give `on_error="skip"`')
    given = [boxes[row] for row in rows]
    inside = [box.clip(*sizes[box.path]) for box in given]
    rows_of = [images.row_of[box.path] for box in given]
    groups = images.groups or [None] * len(images)
    metadata = metadata_of(extractor, images, boxes, method)
    values = torch.cat(parts)
    embeddings = Embeddings(
        values,
        [box.path for box in given],
        [box.label for box in given],
        [images.splits[row] for row in rows_of],
        {**metadata, "embed_dim": values.shape[1], "broken": {str(key): why for key, why in broken.items()}},
        [groups[row] or images.paths[row] for row in rows_of],  # regions of an image overlap or share its light
    )
    clipped = [box for box, part in zip(given, inside, strict=True) if box != part]
    return Regions(embeddings, inside, clipped, broken)


def metadata_of(extractor: Extractor, images: ImageTable, boxes: Sequence[Box], method: Method) -> dict[str, Any]:
    """Return what the values depend on; with the method ``roi_align`` it is also the pooling."""
    used = {box.path for box in boxes}
    part = images.select([row for row, path in enumerate(images.paths) if path in used])
    metadata = describe(extractor, part) | {"method": method, "boxes_sha256": boxes_sha256(boxes)}
    return metadata | ({"pooling": "roi_align"} if method == "roi_align" else {})


def running(extractor: Extractor, method: Method) -> Extractor:
    """Return the extractor as it runs: ``roi_align`` needs any image size, which PyTorch alone takes.

    Raises:
        UserError: it computes in int8, which PyTorch does not.
    """
    if method == "crop" or extractor.engine == "torch":
        return extractor
    if extractor.precision == "int8":
        raise UserError(
            '`method="roi_align"` runs in PyTorch, which does not compute in int8; give another `precision`'
        )
    return copy(extractor).run_with("torch", extractor.precision)


def boxes_sha256(boxes: Sequence[Box]) -> str:
    """Return a hash of boxes with their labels, whatever their order."""
    return sha256(json.dumps(sorted(map(repr, boxes))).encode()).hexdigest()


def check_question(out: Path, extractor: Extractor, images: ImageTable, boxes: Sequence[Box], method: Method) -> None:
    """Refuse to replace regions of another extractor, of other images, or of other boxes.

    Args:
        out: the Parquet file.
        extractor: as of :func:`embed_regions`, with the following.
        images: the images of the boxes.
        boxes: in any order.
        method: of embedding them.

    Raises:
        UserError: the file holds such regions.
    """
    if out.is_file():
        before, asked = (
            read_metadata(pq.read_schema(out), out),
            metadata_of(running(extractor, method), images, boxes, method),
        )
        check_same(out, *({words: each.get(name) for name, words in QUESTION.items()} for each in (before, asked)))


def check_regions_place(out: Path) -> None:
    """Refuse to write over anything but an earlier table of regions.

    Raises:
        UserError: the place is not to be written over, or cannot be written.
    """
    check_folder(out.parent)
    check_place(out, "regions", foreign_to_regions)
    check_parquet(out)


def foreign_to_regions(path: Path) -> str | None:
    """Return what tells a file from one of :func:`save_regions`, or ``None`` if it is one."""
    try:
        schema = pq.read_schema(path)
        return None if "box" in schema.names and "method" in read_metadata(schema, path) else "no column 'box'"
    except (OSError, pa.ArrowException, UserError):
        return "not a table of embeddings"


def save_regions(regions: Regions, path: str | Path) -> None:
    """Write an embeddings table with the additional columns ``box`` (its number), ``x1``, ``y1``, ``x2`` and ``y2``.

    Raises:
        UserError: the file cannot be written.
    """
    table = to_arrow(regions.embeddings)
    table = table.append_column("box", pa.array([box.number for box in regions.boxes], pa.int64()))
    for name in ("x1", "y1", "x2", "y2"):
        table = table.append_column(name, pa.array([getattr(box, name) for box in regions.boxes], pa.float64()))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
