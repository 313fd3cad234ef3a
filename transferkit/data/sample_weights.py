"""The weight of each training image in the loss, named in a file: a list, or an audit's quality of the labels."""

import csv
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from transferkit.data.image_table import ImageTable
from transferkit.errors import UserError, listed
from transferkit.runtime.csv_files import open_csv
from transferkit.runtime.files import file_sha256
from transferkit.runtime.parquet import read_table

log = logging.getLogger(__name__)
COLUMNS = ("weight", "quality")


class SampleWeights(NamedTuple):
    """Weights of the rows of a table.

    Attributes:
        rows: `(N,)` float32, mean 1.
        record: the file and its SHA-256, for the record of a checkpoint.
    """

    rows: Tensor
    record: str

    def above_zero(self, *tables: Tensor) -> list[Tensor]:
        """Return the weights above 0, and those rows of each table: others would count in its mean and variance."""
        kept = self.rows > 0
        return [each[kept] for each in (self.rows, *tables)]


def read_sample_weights(
    file: str, table: ImageTable, target: Tensor, class_weights: Tensor | None = None
) -> SampleWeights:
    """Return the weight of each row; one that the file does not name has 1 before they are scaled to mean 1.

    Args:
        file: CSV or Parquet with a column ``path``, and one ``weight`` or ``quality``.
        table: the training images.
        target: `(N,)` int64 class numbers, or other targets.
        class_weights: `(K,)` weight of each class in the loss: its products with those of the rows then have mean 1.

    Raises:
        UserError: the file cannot be read or has no such columns; a weight is negative or not finite; all are 0.
    """
    path = Path(file).expanduser()
    given = weights_by_path(path)
    weights = torch.tensor([given.get(name, 1.0) for name in table.paths], dtype=torch.float64)
    known = set(table.paths)
    unknown = sorted(given.keys() - known)
    if not given:  # an audit of labels that could not be judged
        log.warning("%s has no rows: all training images have weight 1", file)
    elif len(unknown) == len(given):
        raise UserError(f"`sample_weights={file!r}` names no training image; its paths are such as {unknown[:1]}")
    by_class = class_weights is not None and target.ndim == 1 and not target.is_floating_point()
    mean = float((weights * class_weights[target] if class_weights is not None and by_class else weights).mean())
    if mean == 0:
        raise UserError(f"`sample_weights={file!r}` leaves no training image a weight above 0; give some")
    named = len(given) - len(unknown)
    log.info("%s weights %d of %d training images, the others have 1", file, named, len(table))
    return SampleWeights((weights / mean).float(), f"{path.name} sha256:{file_sha256(path)}")


def weights_by_path(file: Path) -> dict[str, float]:
    """Return path -> weight.

    Raises:
        UserError: see :func:`read_sample_weights`.
    """
    try:
        if file.suffix.lower() == ".parquet":
            columns = read_table(file, ["path", *COLUMNS]).to_pydict()
        else:
            with open_csv(file) as opened:
                rows = list(csv.DictReader(opened.lines, strict=True, delimiter=opened.delimiter))
            columns = {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}
            columns |= {name: list(map(opened.number, columns[name])) for name in COLUMNS if name in columns}
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"cannot read `sample_weights={str(file)!r}` ({' '.join(str(error).split())[:200]})") from error
    found = next((name for name in COLUMNS if name in columns), None)
    if "path" not in columns or found is None:
        raise UserError(f"`sample_weights={str(file)!r}` has no columns 'path' and 'weight' or 'quality'; name them so")
    pairs = [(path, text) for path, text in zip(columns["path"], columns[found], strict=True) if path]
    given = {path: as_weight(text) for path, text in pairs}
    bad = [f"{path} has {text}" for path, text in pairs if not 0 <= as_weight(text) < math.inf]
    if bad:
        raise UserError(
            f"`sample_weights={str(file)!r}`: {listed(bad, quote=False)}; give numbers from 0 up, or leave rows out"
        )
    return given


def as_weight(text: Any) -> float:
    """Return a weight as it is written; NaN for what is not a number."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
