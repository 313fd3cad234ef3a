"""The files of a run, probe, benchmark or evaluation, read as far as they are there; what is missing is noted."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import yaml
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, kept_image_root, open_images
from transferkit.errors import UserError, first_line
from transferkit.images.decoding import ImageError, read_image
from transferkit.reports.mistakes import PredictionTable
from transferkit.runtime.csv_files import open_csv
from transferkit.runtime.json_files import read_json
from transferkit.runtime.parquet import read_table

T = TypeVar("T")
Kind = Literal["run", "probe", "benchmark", "evaluation", "audit", "ranking"]
SIGNS: dict[str, Kind] = {  # a file -> what a folder that holds it is; the first that is there decides
    "config.yaml": "run",
    "metrics.json": "run",  # of what was not trained here
    "probe.json": "probe",
    "benchmark.csv": "benchmark",
    "similarity.json": "evaluation",
    "audit.parquet": "audit",
    "rank.json": "ranking",
}

PREDICTIONS = "predictions.parquet"
UNLIKE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UserError)
"""What a file of other content than was written makes of the code that reads it."""
NO_PLACE = "the results do not say where their images are; make the report again and give their place"


@dataclass
class ResultFolder:
    """A directory of results.

    Attributes:
        path: the directory.
        missing: what a report of it cannot show, and why; grows as files are read.
    """

    path: Path
    missing: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """What it is, by the files in it.

        Raises:
            UserError: it holds none of them.
        """
        for name, kind in SIGNS.items():
            if (self.path / name).is_file():
                return kind
        what = "does not exist" if not self.path.exists() else f"holds none of {', '.join(SIGNS)}"
        raise UserError(
            f"{self.path} {what}; give the directory of a run, probe, benchmark, evaluation, audit or ranking"
        )

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON object; empty where the file is missing or damaged."""
        return self.read(name, read_json) or {}

    def yaml(self, name: str) -> dict[str, Any]:
        """Return a YAML mapping; empty where the file is missing or damaged."""
        return self.read(name, lambda path: dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})) or {}

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a CSV file; none where it is missing or damaged."""

        def read(path: Path) -> list[dict[str, str]]:
            with open_csv(path) as (lines, delimiter):
                return list(csv.DictReader(lines, strict=True, delimiter=delimiter))

        return self.read(name, read) or []

    def columns(self, name: str, *needed: str) -> dict[str, list[Any]]:
        """Return the columns of a Parquet file; none where it is missing, damaged, or lacks one that is needed."""

        def read(path: Path) -> dict[str, list[Any]]:
            found = dict(read_table(path).to_pydict())
            if missing := sorted(set(needed) - found.keys()):
                raise ValueError(f"no column {', '.join(missing)}")
            return found

        return self.read(name, read) or {}

    def predictions(self) -> PredictionTable | None:
        """Return the labeled rows of ``predictions.parquet``."""
        columns = self.columns(PREDICTIONS)
        if not {"path", "label", "prediction", "probability"} <= columns.keys():
            return None
        return self.part(PREDICTIONS, lambda: predictions_of(columns), None)

    def embeddings(self) -> Embeddings | None:
        """Return the table of ``embeddings.parquet``."""
        return self.read("embeddings.parquet", Embeddings.load)

    def read(self, name: str, reader: Callable[[Path], T]) -> T | None:
        """Return what a reader makes of a file; None where it is missing or damaged, and a damaged one is noted."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return reader(path)
        except (OSError, ValueError, TypeError, csv.Error, yaml.YAMLError, pa.ArrowException, UserError) as error:
            self.missing.append(f"{name} cannot be read ({first_line(error)})")
            return None

    def part(self, name: str, make: Callable[[], T], instead: T) -> T:
        """Return a part of a report; of a file that somebody has changed, what stands instead, and that is noted.

        Args:
            name: the file that the part is made of.
            make: returns the part.
            instead: what a report has without it.
        """
        try:
            return make()
        except UNLIKE as error:
            self.missing.append(f"{name} is not as it was written ({type(error).__name__}: {first_line(error)})")
            return instead


def predictions_of(columns: Mapping[str, Sequence[Any]]) -> PredictionTable | None:
    """Return the labeled rows among columns of predictions; None if there are none.

    Raises:
        TypeError: a path, label or prediction is not text.
    """
    kept = [row for row, label in enumerate(columns["label"]) if label is not None]
    paths, labels, preds = ([columns[name][row] for row in kept] for name in ("path", "label", "prediction"))
    if not all(isinstance(name, str) for column in (paths, labels, preds) for name in column):
        raise TypeError("a path, label or prediction is not text")
    probability = np.array([columns["probability"][row] for row in kept], dtype=np.float64)
    stated = columns.get("calibrated_probability")
    calibrated = None if stated is None else np.array([stated[row] for row in kept], dtype=np.float64)
    return PredictionTable(paths, labels, preds, probability, calibrated) if kept else None


def mapping(value: Any) -> dict[str, Any]:
    """Return an object within a file; an empty one where there is something else."""
    return dict(value) if isinstance(value, Mapping) else {}


def is_fine_tuned(config: Mapping[str, Any]) -> bool:
    """Return whether the backbone of a run has learned the classes, by the content of its ``config.yaml``."""
    return bool(mapping(config.get("model")).get("regime", "frozen") != "frozen")


def versions_in(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that a file records."""
    return {str(name): str(version) for name, version in mapping(content.get("versions")).items()}


def text(value: Any) -> str | None:
    """Return a text within a file; None where there is something else, or an empty one."""
    return value if isinstance(value, str) and value else None


@dataclass(frozen=True)
class ImageSource:
    """Where the images of a report are read from.

    Attributes:
        table: the images; None where they are not there.
        reason: why they are not.
        pictures: files of the results themselves, by the path that a card has.
    """

    table: ImageTable | None
    reason: str = ""
    pictures: Mapping[str, Path] = field(default_factory=dict)

    def reader(self) -> Callable[[str], Tensor]:
        """Return a function from a path to pixels, which raises ImageError."""
        table = self.table
        row_of = table.row_of if table else {}

        def read(path: str) -> Tensor:
            if path in self.pictures:
                return read_image(self.pictures[path])
            if table is None or path not in row_of:
                raise ImageError("missing", self.reason or "no longer there")
            return table.read(row_of[path])

        return read


def place_of_images(
    images: str | None, image_root: str | None, recorded: Mapping[str, Any], name: str = "source"
) -> tuple[str | None, str | None]:
    """Return folder, manifest or name of the images of a report, and the image root.

    Args:
        images: as given; None takes the recorded ones.
        image_root: as given; None takes the recorded one, if it is for such images.
        recorded: what the results say, with ``image_root``.
        name: of the images in it.
    """
    known = text(recorded.get("image_root"))
    if images is None:
        return text(recorded.get(name)), image_root or known
    return images, image_root or kept_image_root(known, images)


def find_images(source: str | None, image_root: str | None, beside: Path) -> ImageSource:
    """Open the images that results were computed from; a relative path may be relative to a folder above the results.

    Args:
        source: folder, manifest or name of a dataset, as it was given; None where nobody wrote it down.
        image_root: of a manifest.
        beside: the directory of the results.
    """
    if not source:
        return ImageSource(None, NO_PLACE)
    reason = ""
    for folder in (Path(), *beside.absolute().parents[:4]):
        given = Path(source).expanduser()
        place = str(source) if folder == Path() or given.is_absolute() else str(folder / given)
        root = image_root if image_root is None or folder == Path() else str(folder / image_root)
        try:
            return ImageSource(open_images(place, root))
        except (UserError, OSError) as error:
            reason = reason or reason_of(error, source)
    return ImageSource(None, reason)


def reason_of(error: Exception, source: str) -> str:
    """Return why images cannot be shown, in one line."""
    if "no such folder or file" in str(error):
        return f"the images are no longer at {source!r}; make the report again and give their place"
    return first_line(error)
