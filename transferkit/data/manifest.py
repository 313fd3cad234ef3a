"""Manifests: a CSV or Parquet table with the columns ``path[,label][,split]``, read and checked by row."""

import csv
import difflib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transferkit.data.containment import Containment
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
_UNKNOWN = "?"  # no split's name
_BLOCK = 1024  # rows read and checked together: few enough to stay in the processor's cache
MAX_PARQUET_BYTES = 2**30


Cells = Sequence[str | None]


class ManifestRow(NamedTuple):
    """One image: its path relative to the folder of the images, its label, and its split (train, val, test)."""

    path: str
    label: str | None
    split: str | None


class Columns(NamedTuple):
    """A manifest by its columns, rows in file order; equal labels are one object, so a row takes little more than
    its path.
    """

    paths: list[str]
    labels: list[str | None]
    splits: list[str | None]

    def select(self, rows: Iterable[int]) -> "Columns":
        """Some rows, in the order given."""
        rows = list(rows)
        paths, labels, splits = self
        return Columns([paths[row] for row in rows], [labels[row] for row in rows], [splits[row] for row in rows])


class Block(NamedTuple):
    """Some rows as they stand in the file.

    Attributes:
        cells: of the columns path, label and split.
        ragged: positions of rows with more cells than columns.
    """

    cells: list[Cells]
    ragged: Sequence[int]


class _Labels(dict[str | None, str | None]):
    """Cell -> label; each text is cleaned once, and is one object in however many rows."""

    def __missing__(self, cell: str | None) -> str | None:
        text = (cell or "").strip() or None
        self[cell] = text if text is None or text == cell else self[text]
        return self[cell]


class _Splits(dict[str | None, str | None]):
    """Cell -> split, ``_UNKNOWN`` for a word that is none."""

    def __missing__(self, cell: str | None) -> str | None:
        word = (cell or "").strip().lower()
        self[cell] = SPLIT_WORDS.get(word, _UNKNOWN) if word else None
        return self[cell]


def read_manifest(
    manifest: Path, faults: list[str] | None = None, image_root: str | Path | None = None
) -> list[ManifestRow]:
    """Read and check a manifest as :func:`read_columns` does; its rows in file order."""
    return list(map(ManifestRow, *read_columns(manifest, faults, image_root)))


def read_columns(manifest: Path, faults: list[str] | None = None, image_root: str | Path | None = None) -> Columns:
    """Read and check a manifest; paths normalised and unique.

    Paths are relative to the manifest's folder, or to ``image_root``; absolute ones inside it are accepted. They
    must stay in it, links included. That the files exist is not checked here: a missing image is a broken image.
    Labels are text (numbers are turned into it), stripped. An empty cell and a number that is NaN are ``None``; so
    is the text ``nan`` or ``NaN`` where all other labels are numbers, else it is the name of a class.

    Args:
        manifest: a ``.csv`` (UTF-8, comma) or ``.parquet`` file.
        faults: takes the lines that a faulty row would raise, so that the others are read.
        image_root: the folder of the images, where that is not the manifest's.

    Raises:
        UserError: unreadable file, no ``path`` column (the nearest one is named), one of the three columns twice, no
            row, or a row with an empty, escaping or repeated path or an unknown split. Rows count from 1, the
            header left out.
    """
    is_parquet = manifest.suffix.lower() == ".parquet"
    contain = Containment(Path(image_root or manifest.parent), "manifest's folder" if image_root is None else "")
    found, dropped, number = Columns([], [], []), set[int](), 0
    labels, splits = _Labels(), _Splits()
    try:
        for block in _parquet_blocks(manifest) if is_parquet else _csv_blocks(manifest):
            checked, reasons = _check(block, contain, labels, splits)
            for position, reason in sorted(reasons.items()):
                _tell(manifest, number + position + 1, reason, faults)
                dropped.add(number + position + 1)
            number += len(checked.paths)
            checked = (
                checked.select(row for row in range(len(checked.paths)) if row not in reasons) if reasons else checked
            )
            found.paths.extend(checked.paths)
            found.labels.extend(checked.labels)
            found.splits.extend(checked.splits)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        kind = "Parquet file" if is_parquet else "CSV file in UTF-8"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {str(manifest)!r} as a {kind} ({reason!r}); write it again") from error
    if not found.paths and not faults:
        raise UserError(f"manifest {str(manifest)!r} has no rows; give it one for each image")
    if len(set(found.paths)) < len(found.paths):
        found = _without_repeated(found, dropped, manifest, faults)
    return _without_nan(found)


def _tell(manifest: Path, number: int, reason: str, faults: list[str] | None) -> None:
    """Collect what is wrong with a row, or raise it."""
    line = f"manifest {str(manifest)!r}, row {number}: {reason}"
    if faults is None:
        raise UserError(line)
    faults.append(line)


def _check(block: Block, contain: Containment, labels: _Labels, splits: _Splits) -> tuple[Columns, dict[int, str]]:
    """What the cells of some rows mean, and position -> fault of the rows that are not to be kept."""
    reasons: dict[int, str] = {}
    checked = Columns(
        contain.all(block.cells[0], reasons),
        list(map(labels.__getitem__, block.cells[1])),
        list(map(splits.__getitem__, block.cells[2])),
    )
    if _UNKNOWN in checked.splits:
        for position, split in enumerate(checked.splits):
            if split == _UNKNOWN:
                word = (block.cells[2][position] or "").strip()
                known = f"unknown split {word!r}; use train, val or test, or leave it empty"
                reasons.setdefault(position, known)
    for position in block.ragged:
        reasons[position] = "more cells than columns; put quotes around values with a comma"
    return checked, reasons


def _without_repeated(found: Columns, dropped: set[int], manifest: Path, faults: list[str] | None) -> Columns:
    """Keep the first row of each path."""
    first: dict[str, int] = {}
    kept = []
    numbers = (number for number in itertools.count(1) if number not in dropped)
    for position, (path, number) in enumerate(zip(found.paths, numbers, strict=False)):
        if path in first:
            _tell(manifest, number, f"{path!r} is already row {first[path]}; keep one of the two", faults)
        else:
            first[path] = number
            kept.append(position)
    return found.select(kept)


def _without_nan(found: Columns) -> Columns:
    """Take the text ``nan`` for no label where all other labels are numbers."""
    labels = {label for label in set(found.labels) if label}
    others = labels - _MISSING_NUMBERS
    if labels == others or not others or not all(map(_is_number, others)):
        return found
    return found._replace(labels=[None if label in _MISSING_NUMBERS else label for label in found.labels])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_blocks(manifest: Path) -> Iterator[Block]:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        _check_columns(names, manifest)
        places = [names.index(name) if name in names else -1 for name in _COLUMNS]
        rows = filter(None, reader)  # a blank line is no row
        while block := list(itertools.islice(rows, _BLOCK)):
            lengths = list(map(len, block))
            if min(lengths) < len(names):  # what a row lacks is empty
                block = [cells + [""] * len(names) for cells in block]
            ragged = [row for row, length in enumerate(lengths) if length > len(names)]
            nothing: Cells = [None] * len(block)
            yield Block([nothing if place < 0 else [row[place] for row in block] for place in places], ragged)


def _parquet_blocks(manifest: Path) -> Iterator[Block]:
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
    _check_unpacked(unpacked)
    paths = 0
    # Dictionaries are kept, so that a long text repeated a million times is one Python object. No path is repeated.
    with pq.ParquetFile(manifest, read_dictionary=[name for name in columns if name != "path"]) as file:
        for batch in file.iter_batches(batch_size=_BLOCK, columns=columns):
            batch.validate(full=True)  # flipped bits make indices that lead out of their dictionary
            paths += batch.column("path").nbytes
            _check_unpacked(paths)
            texts = {name: _texts(batch.column(name)) for name in columns}
            nothing: Cells = [None] * len(batch)
            yield Block([texts.get(name, nothing) for name in _COLUMNS], ())


def _check_unpacked(size: int) -> None:
    if size > MAX_PARQUET_BYTES:
        raise ValueError(f"its paths and labels unpack to {size} bytes, more than {MAX_PARQUET_BYTES}")


def _texts(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        used = column.indices.dictionary_encode()  # of a dictionary that the whole file may share
        words = _texts(column.dictionary.take(used.dictionary))
        return [None if index is None else words[index] for index in used.indices.to_pylist()]
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
