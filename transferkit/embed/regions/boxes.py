"""Boxes from a CSV table or a COCO file, validated by row."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transferkit.data.image_table import ImageTable
from transferkit.errors import UserError, listed
from transferkit.runtime.csv_files import open_csv

CORNERS = ("x1", "y1", "x2", "y2")
MAX_BYTES = 2**30


class Box(NamedTuple):
    """A rectangle in an upright image, in pixels: x1 <= x < x2 from the left, y1 <= y < y2 from the top.

    ``number`` is the row of a CSV (from 1, without the header) or the ``id`` of a COCO annotation; ``size`` is the
    (height, width) of the image in the file, if given.
    """

    number: int
    path: str
    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None
    size: tuple[int, int] | None = None

    def clip(self, height: int, width: int) -> "Box":
        """Return the part inside an image of that size; it may be empty (x2 <= x1 or y2 <= y1)."""
        return self._replace(
            x1=max(self.x1, 0.0), y1=max(self.y1, 0.0), x2=min(self.x2, float(width)), y2=min(self.y2, float(height))
        )

    @property
    def is_empty(self) -> bool:
        """Whether the box has no area."""
        return not (self.x1 < self.x2 and self.y1 < self.y2)

    def fault(self, height: int, width: int) -> str | None:
        """Return why the box does not fit an upright image of that size; None if it fits."""
        corners = ", ".join(f"{value:g}" for value in self[2:6])
        if self.size is not None and self.size != (height, width):
            turned = ": for the image before its EXIF rotation?" if self.size == (width, height) else ""
            said = f"{self.size[1]} x {self.size[0]}"
            return f"the boxes are for an image of {said} pixels, it is upright {width} x {height}{turned}"
        if all(0 <= value <= 1 for value in self[2:6]) and (height, width) != (1, 1):
            return f"the box {corners} looks like fractions of the image; give pixels"
        if self.clip(height, width).is_empty:
            return f"the box {corners} lies outside of its image of {width} x {height} pixels"
        return None


def read_boxes(file: str | Path, skipped: list[str] | None = None) -> list[Box]:
    """Read boxes, in the order of the file.

    Args:
        file: a ``.csv`` (UTF-8) with the columns ``path,x1,y1,x2,y2[,label]``, or a ``.json`` in COCO's layout
            (https://cocodataset.org/#format-data): ``images`` (``id``, ``file_name``), ``annotations``
            (``image_id``, ``bbox`` as x, y, width, height, and perhaps ``id`` and ``category_id``), and, for
            labels, ``categories``. If an image has ``width`` and ``height``, they are compared when it is read.
        skipped: if given, faults of rows that are not a box (empty ones, which COCO itself has, or without four
            numbers) are added to it, and the other rows are read.

    Raises:
        UserError: the file cannot be read or has no boxes; rows are not boxes and ``skipped`` is None: they are
            counted, and the first are named.
    """
    file = Path(file)
    readers = {".csv": csv_boxes, ".json": coco_boxes}
    if file.suffix.lower() not in readers:
        raise UserError(f"`boxes` is {file}; give a .csv (path,x1,y1,x2,y2[,label]) or a COCO .json")
    faults: list[str] = []
    boxes = []
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes; split it")
        for found in readers[file.suffix.lower()](file):
            boxes += [found] if isinstance(found, Box) else []
            faults += [found] if isinstance(found, str) else []
    except (OSError, ValueError, OverflowError, csv.Error, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"boxes {file} cannot be read: {reason}") from error
    if not boxes or skipped is None:
        refuse(file, faults)
    if not boxes:
        raise UserError(f"{file} has no boxes")
    if skipped is not None:
        skipped += faults
    return boxes


def match_boxes(
    file: str | Path, boxes: Sequence[Box], images: ImageTable, skipped: list[str] | None = None
) -> list[Box]:
    """Return the boxes whose images exist.

    Args:
        file: the file of the boxes, for messages.
        boxes: as :func:`read_boxes` returns them.
        images: the images.
        skipped: if given, faults of the other boxes are added to it.

    Raises:
        UserError: boxes have no image and ``skipped`` is None, or none has an image; the first are named.
    """
    known = set(images.paths)
    what = f"not among the {len(images)} images of {images.source or images.root}"
    faults = [f"row {box.number}: {box.path!r} is {what}" for box in boxes if box.path not in known]
    matched = [box for box in boxes if box.path in known]
    if not matched or skipped is None:
        refuse(file, faults)
    if skipped is not None:
        skipped += faults
    return matched


def refuse(file: str | Path, faults: Sequence[str], most: int = 3) -> None:
    """Raise if there are faulty rows.

    Raises:
        UserError: there are; the first few are named.
    """
    if faults:
        named = listed(faults, most, quote=False, separator="; ")
        raise UserError(f"boxes {file}: {named}; correct or remove them")


def csv_boxes(file: Path) -> Iterator[Box | str]:
    """Yield a box or a fault for each row of a CSV."""
    with open_csv(file) as opened:
        reader = csv.DictReader(opened.lines, strict=True, delimiter=opened.delimiter)
        missing = [name for name in ("path", *CORNERS) if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}; its first line must be path,x1,y1,x2,y2[,label]")
        for number, record in enumerate(reader, 1):
            if None in record:
                yield f"row {number}: more cells than columns; put quotes around values with a comma"
                continue
            label = (record.get("label") or "").strip() or None
            yield box(number, record["path"], [opened.number(record[name]) for name in CORNERS], label)


def coco_boxes(file: Path) -> Iterator[Box | str]:
    """Yield a box or a fault for each annotation of a COCO file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content = content if isinstance(content, dict) else {}
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError("it needs the lists images and annotations of COCO files")
    names, sizes = by_id("images", images, "file_name"), sizes_by_id(images)
    classes = by_id("categories", content["categories"], "name") if content.get("categories") is not None else None
    seen: set[int] = set()
    for position, record in enumerate(annotations):
        number = record.get("id", position) if isinstance(record, dict) else position
        if not isinstance(record, dict) or type(number) is not int:
            yield f"annotation at position {position}: not an object with an integer id"
            continue
        if not -(2**63) <= number < 2**63:
            yield f"annotation at position {position}: its id exceeds 64 bits"
            continue
        if number in seen:
            yield f"row {number}: annotation at position {position} has the same id"
            continue
        seen.add(number)
        corners = record.get("bbox")
        if not isinstance(corners, list) or len(corners) != 4 or any(type(c) not in (int, float) for c in corners):
            yield f"row {number}: bbox {str(corners)[:40]!r} is not [x, y, width, height]"
            continue
        x, y, width, height = corners
        category = record.get("category_id")
        if classes is not None and category is not None and str(category) not in classes:
            yield f"row {number}: category_id {str(category)[:40]!r} is not among the categories with a name"
            continue
        image = str(record.get("image_id"))
        label = (classes or {}).get(str(category))
        yield box(number, names.get(image), [x, y, x + width, y + height], label, sizes.get(image))


def sizes_by_id(images: list[Any]) -> dict[str, tuple[int, int]]:
    """Return (height, width) of COCO's images by id, if both are given as positive numbers."""
    sizes: dict[str, tuple[int, int]] = {}
    for record in images:
        height, width = (record.get(side) for side in ("height", "width")) if isinstance(record, Mapping) else (0, 0)
        if not (isinstance(height, int | float) and isinstance(width, int | float)):
            continue
        if 1 <= height < 2**31 and 1 <= width < 2**31:  # NaN is not
            sizes[str(record.get("id"))] = int(height), int(width)
    return sizes


def by_id(what: str, records: Any, field: str) -> dict[str, str]:
    """Return a text field of COCO records by id; ``what`` names them in messages.

    Raises:
        ValueError: two records have the same id.
    """
    found = [record for record in records if isinstance(record, Mapping)] if isinstance(records, list) else []
    named = [(str(record["id"]), record.get(field)) for record in found if record.get("id") is not None]
    if twice := [key for key, count in Counter(key for key, _ in named).items() if count > 1]:
        raise ValueError(f"{what} has the id {twice[0][:40]} more than once; give each its own")
    return {key: value for key, value in named if isinstance(value, str)}


def box(
    number: int, path: Any, corners: Sequence[Any], label: str | None, size: tuple[int, int] | None = None
) -> Box | str:
    """Return a box, or why the values are not one."""
    path = path.removeprefix("./") if isinstance(path, str) else path
    if not path:
        return f"row {number}: no image is named"
    found = [value for corner in corners if (value := as_number(corner)) is not None]
    shown = ", ".join(str(corner)[:20] for corner in corners)
    if len(found) < 4:
        return f"row {number}: {shown} are not four finite numbers"
    made = Box(number, path, found[0], found[1], found[2], found[3], label, size)
    return f"row {number}: the box {shown} is empty (it needs x1 < x2 and y1 < y2)" if made.is_empty else made


def as_number(value: Any) -> float | None:
    """Return a value as a finite float, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
