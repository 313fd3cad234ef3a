"""Manifests: a CSV or Parquet table with the columns ``path[,label][,split]``, read and checked by row."""

import csv
import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transferkit.errors import UserError

_log = logging.getLogger(__name__)

MANIFEST_SUFFIXES = (".csv", ".parquet")

# Words that people use for a split, in folders and in manifests, and the three that we use.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

_COLUMNS = ("path", "label", "split")
_OTHER_NAMES = {
    "path": ("path", "filepath", "filename", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target", "species"),
}
_MISSING_NUMBERS = {"nan", "NaN"}
MAX_PARQUET_BYTES = 2**30


class ManifestRow(NamedTuple):
    """One image: its path relative to the manifest's folder, its label, and its split (train, val, test)."""

    path: str
    label: str | None
    split: str | None


def read_manifest(manifest: Path, faults: list[str] | None = None) -> list[ManifestRow]:
    """Read and check a manifest; rows in file order, paths normalised and unique.

    Paths are relative to the manifest's folder (absolute ones inside it are accepted) and must stay in it,
    links included. That the files exist is not checked here: a missing image is a broken image.
    Labels are text (numbers are turned into it), stripped. An empty cell and a number that is NaN are ``None``; so
    is the text ``nan`` or ``NaN`` where all other labels are numbers, else it is the name of a class.

    Args:
        manifest: a ``.csv`` (UTF-8, comma) or ``.parquet`` file.
        faults: takes the lines that a faulty row would raise, so that the others are read.

    Raises:
        UserError: unreadable file, no ``path`` column (the nearest one is named), one of the three columns twice, no
            row, or a row with an empty, escaping or repeated path or an unknown split. Rows count from 1, the
            header left out.
    """
    records = _parquet_records(manifest) if manifest.suffix.lower() == ".parquet" else _csv_records(manifest)
    contain = _Containment(manifest.parent)
    rows: list[ManifestRow] = []
    first_seen: dict[str, int] = {}
    try:
        for number, record in enumerate(records, start=1):
            where = f"manifest {str(manifest)!r}, row {number}"
            try:
                row = _row(record, contain, where)
                if row.path in first_seen:
                    other = first_seen[row.path]
                    raise UserError(f"{where}: {row.path!r} is already row {other}; keep one of the two")
            except UserError as error:
                if faults is None:
                    raise
                faults.append(str(error))
                continue
            first_seen[row.path] = number
            rows.append(row)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        kind = "Parquet file" if manifest.suffix.lower() == ".parquet" else "CSV file in UTF-8"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {str(manifest)!r} as a {kind} ({reason!r}); write it again") from error
    if not rows and not faults:
        raise UserError(f"manifest {str(manifest)!r} has no rows; give it one for each image")
    return _without_nan(rows)


def _without_nan(rows: list[ManifestRow]) -> list[ManifestRow]:
    """Take the text ``nan`` for no label where all other labels are numbers."""
    labels = {row.label for row in rows if row.label}
    others = labels - _MISSING_NUMBERS
    if labels == others or not others or not all(map(_is_number, others)):
        return rows
    return [row._replace(label=None) if row.label in _MISSING_NUMBERS else row for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _row(record: Mapping[str | None, str | None], contain: "_Containment", where: str) -> ManifestRow:
    if None in record:
        raise UserError(f"{where}: more cells than columns; put quotes around values with a comma")
    path = contain(record["path"] or "", where)
    return ManifestRow(path, (record.get("label") or "").strip() or None, _split(record.get("split"), where))


class _Containment:
    """Turns a manifest's path into a normalised one inside the manifest's folder, or refuses it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder.resolve()
        self.inside: dict[str, bool] = {}  # a folder is resolved once, however many images it holds

    def __call__(self, path: str, where: str) -> str:
        """The path relative to the folder, without ``.`` and ``..``; UserError if it leads elsewhere."""
        if not path or "\0" in path:
            raise UserError(f"{where}: the path is empty or no path; give one relative to the manifest")
        relative = os.path.normpath(path)
        if path.startswith("/"):  # the folder may be known by several names
            relative = os.path.relpath(_real(Path(path).parent) / Path(path).name, self.root)
        folder = relative.rpartition("/")[0]
        if folder not in self.inside:
            self.inside[folder] = _real(self.root / folder).is_relative_to(self.root)
        file = self.root / relative
        leaves = relative.split("/", 1)[0] == ".." or not self.inside[folder]
        if leaves or (file.is_symlink() and not _real(file).is_relative_to(self.root)):
            raise UserError(f"{where}: {path!r} leads out of the manifest's folder; move the image or the manifest")
        return relative


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises for looping links


def _csv_records(manifest: Path) -> Iterator[Mapping[str | None, str | None]]:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        _check_columns(reader.fieldnames or [], manifest)
        yield from reader


def _parquet_records(manifest: Path) -> Iterator[Mapping[str | None, str | None]]:
    """Stream the three columns as text; a small file that unpacks into gigabytes is refused."""
    metadata = pq.read_metadata(manifest)
    schema = metadata.schema.to_arrow_schema()
    _check_columns(schema.names, manifest)
    columns = [name for name in _COLUMNS if name in schema.names]
    if not {metadata.schema.column(index).path for index in range(metadata.num_columns)}.issuperset(columns):
        raise ValueError("a column holds lists or records in the place of text")
    # Asking each column for its size would be exact, but where metadata is damaged pyarrow then ends the process.
    vectors = sum(4 * field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups) - metadata.num_rows * vectors
    if unpacked > MAX_PARQUET_BYTES:
        raise ValueError(f"its paths and labels unpack to {unpacked} bytes, more than {MAX_PARQUET_BYTES}")
    # Dictionaries are kept, so that a long text repeated a million times is one Python object.
    with pq.ParquetFile(manifest, read_dictionary=columns) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            batch.validate(full=True)  # flipped bits make indices that lead out of their dictionary
            for values in zip(*(_texts(batch.column(name)) for name in columns), strict=True):
                yield dict(zip(columns, values, strict=True))


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        words = _texts(column.dictionary)
        return [None if index is None else words[index] for index in column.indices.to_pylist()]
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    if pa.types.is_floating(column.type):
        return [None if text == "nan" else text for text in texts]
    return texts


def _check_columns(names: Sequence[str], manifest: Path) -> None:
    """Refuse a manifest without ``path`` or with a column twice; warn of one that calls its labels something else."""
    if not names:
        raise UserError(f"manifest {str(manifest)!r} is empty; give it the columns path[,label][,split]")
    if "path" not in names:
        nearest = _nearest(names, "path")
        raise UserError(f"manifest {str(manifest)!r} has no column 'path'; rename the nearest one, {nearest!r}")
    for name in _COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"manifest {str(manifest)!r} has the column {name!r} twice; rename or remove one of them")
    others = [name for name in names if name not in _COLUMNS and name.strip()]
    if others and "label" not in names:
        nearest = _nearest(others, "label")
        _log.warning("%r has no column 'label' (it has %r): its images have no labels", str(manifest), nearest)


def _nearest(names: Sequence[str], column: str) -> str:
    """The name most like one that people give to a column."""

    def likeness(name: str) -> float:
        others = _OTHER_NAMES[column]
        return max(difflib.SequenceMatcher(None, name.strip().lower(), other).ratio() for other in others)

    return max(names, key=likeness)


def _split(word: str | None, where: str) -> str | None:
    word = (word or "").strip()
    if word and word.lower() not in SPLIT_WORDS:
        raise UserError(f"{where}: unknown split {word!r}; use train, val or test, or leave it empty")
    return SPLIT_WORDS[word.lower()] if word else None
