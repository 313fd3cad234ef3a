"""Manifests: a CSV or Parquet table with the columns ``path[,label][,split]``, read and checked by row."""

import csv
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transferkit.errors import UserError

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
_OTHER_NAMES_OF_PATH = ("path", "filepath", "filename", "image", "image_path")
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
    Labels are text (numbers are turned into it), stripped; an empty cell is ``None``.

    Args:
        manifest: a ``.csv`` (UTF-8, comma) or ``.parquet`` file.
        faults: takes the lines that a faulty row would raise, so that the others are read.

    Raises:
        UserError: unreadable file, no ``path`` column (the nearest one is named), or a row with an empty,
            escaping or repeated path or an unknown split. Rows count from 1, the header left out.
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
    return rows


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
        _require_path_column(reader.fieldnames or [], manifest)
        yield from reader


def _parquet_records(manifest: Path) -> Iterator[Mapping[str | None, str | None]]:
    """Stream the three columns as text; a small file that unpacks into gigabytes is refused."""
    metadata = pq.read_metadata(manifest)
    schema = metadata.schema.to_arrow_schema()
    _require_path_column(schema.names, manifest)
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
    return texts


def _require_path_column(names: Sequence[str], manifest: Path) -> None:
    if "path" in names:
        return
    if not names:
        raise UserError(f"manifest {str(manifest)!r} is empty; give it the columns path[,label][,split]")
    nearest = max(names, key=_likeness_to_path)
    raise UserError(f"manifest {str(manifest)!r} has no column 'path'; rename the nearest one, {nearest!r}")


def _likeness_to_path(name: str) -> float:
    return max(difflib.SequenceMatcher(None, name.strip().lower(), other).ratio() for other in _OTHER_NAMES_OF_PATH)


def _split(word: str | None, where: str) -> str | None:
    word = (word or "").strip()
    if word and word.lower() not in SPLIT_WORDS:
        raise UserError(f"{where}: unknown split {word!r}; use train, val or test, or leave it empty")
    return SPLIT_WORDS[word.lower()] if word else None
