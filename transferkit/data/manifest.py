"""Manifests: CSV or Parquet with the columns ``path[,label|target][,split][,group]``, read in blocks of rows."""

import csv
import difflib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transferkit.data.columns import Columns, take
from transferkit.data.containment import Containment
from transferkit.data.targets import BAR, TARGETS, Kind, joined_labels, number_of, one_form
from transferkit.errors import UserError
from transferkit.runtime.csv_files import open_csv

log = logging.getLogger(__name__)

MANIFEST_SUFFIXES = (".csv", ".parquet")

# Common names of a split, in folders and manifests -> train, val or test.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

COLUMNS = ("path", "label", "split", "group")
OTHER_NAMES = {
    "path": ("path", "filepath", "filename", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target", "species"),
}
MISSING_NUMBERS = {"nan", "NaN"}
UNKNOWN = "?"  # stands for a word that is not the name of a split, and for text that is not a number
BLOCK_ROWS = 1024  # read and checked together: few enough to stay in the processor's cache
MAX_PARQUET_BYTES = 2**30


Cells = Sequence[str | None]


class ManifestRow(NamedTuple):
    """One image: its path relative to the folder of the images, its label, and its split (train, val, test)."""

    path: str
    label: str | None
    split: str | None


class Block(NamedTuple):
    """Some rows of the file, unchecked.

    Attributes:
        cells: of the columns path, label (or target), split and group.
        ragged: positions of rows with more cells than columns.
    """

    cells: list[Cells]
    ragged: Sequence[int]


class Labels(dict[str | None, str | None]):
    """Cell -> label or group; each text is cleaned once, and all rows share one object."""

    def __missing__(self, cell: str | None) -> str | None:
        text = (cell or "").strip() or None
        self[cell] = text if text is None or text == cell else self[text]
        return self[cell]


class LabelSets(dict[str | None, str | None]):
    """Cell -> labels, sorted, each in one Unicode form."""

    def __missing__(self, cell: str | None) -> str | None:
        text = (cell or "").strip()
        self[cell] = joined_labels([one_form(text) or ""]) if text else None
        return self[cell]


class Numbers(dict[str | None, str | None]):
    """Cell -> number in its shortest form, None for NaN, ``UNKNOWN`` for text and infinity."""

    def __missing__(self, cell: str | None) -> str | None:
        text = (cell or "").strip()
        value = number_of(text)
        missing = not text or text.lower() == "nan"
        self[cell] = None if missing else UNKNOWN if value is None else repr(value)
        return self[cell]


CLEANING: Mapping[Kind, type[dict[str | None, str | None]]] = {"class": Labels, "labels": LabelSets, "number": Numbers}


class Splits(dict[str | None, str | None]):
    """Cell -> split, ``UNKNOWN`` for another word."""

    def __missing__(self, cell: str | None) -> str | None:
        word = (cell or "").strip().lower()
        self[cell] = SPLIT_WORDS.get(word, UNKNOWN) if word else None
        return self[cell]


def read_manifest(
    manifest: Path, faults: list[str] | None = None, image_root: str | Path | None = None
) -> list[ManifestRow]:
    """Read and check a manifest as :func:`read_columns` does, and return its rows in file order, without groups."""
    return list(map(ManifestRow, *read_columns(manifest, faults, image_root)[:3]))


def kind_of(manifest: Path, multilabel: bool | None = None) -> Kind:
    """Return what a manifest says of its images: the type of its column ``label``, or that it has ``target`` instead.

    Args:
        manifest: the file; of one that cannot be read, reading says why.
        multilabel: whether a label is several; None is so for lists in Parquet, and not for text.

    Raises:
        UserError: the file contradicts ``multilabel``.
    """
    lists = False
    try:
        if manifest.suffix.lower() == ".parquet":
            schema = pq.read_schema(manifest)
            names = schema.names
            lists = names.count("label") == 1 and is_list(schema.field("label").type)
        else:
            with open_csv(manifest) as (lines, delimiter):
                names = next(csv.reader(lines, strict=True, delimiter=delimiter), [])
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return "class"
    if lists and multilabel is False:
        raise UserError(f"the labels of {str(manifest)!r} are lists, several per image; add `multilabel=True`")
    if "label" not in names and TARGETS["number"].column in names:
        if multilabel:
            raise UserError(f"{str(manifest)!r} has a number per image (column 'target'); leave out `multilabel`")
        return "number"
    if "label" in names and TARGETS["number"].column in names:
        log.warning("%r has the columns 'label' and 'target': 'label' is used; remove one of them", str(manifest))
    return "labels" if lists or multilabel else "class"


def read_columns(
    manifest: Path, faults: list[str] | None = None, image_root: str | Path | None = None, kind: Kind = "class"
) -> Columns:
    """Read and check a manifest; paths are normalized and unique, rows in file order.

    Paths are relative to the manifest's folder, or to ``image_root``; absolute ones inside it are accepted. They
    must stay in it, after links are followed. Whether the files exist is not checked here: a missing image is a
    broken image. Labels and groups are text (numbers are converted), stripped. An empty cell and a number that is
    NaN are ``None``, and so is the label ``nan`` or ``NaN`` if all others are numbers; otherwise it is a class name.

    Args:
        manifest: a ``.csv`` (UTF-8; commas, semicolons or tabs) or ``.parquet`` file.
        faults: if given, the messages of faulty rows are appended instead of raised, and the other rows are read.
        image_root: the folder of the images, if it is not the manifest's.
        kind: what to read as the labels, see :func:`kind_of`.

    Raises:
        UserError: the file is unreadable, has no ``path`` column (the most similar one is named), one of the four
            columns twice, no row, or a row with an empty, escaping or repeated path or an unknown split. Rows count
            from 1, without the header.
    """
    is_parquet = manifest.suffix.lower() == ".parquet"
    folder = manifest.parent if image_root is None else Path(image_root).expanduser()
    contain = Containment(folder, "manifest's folder" if image_root is None else "")
    found, dropped, number = Columns([], [], [], []), set[int](), 0
    labels, groups, splits = CLEANING[kind](), Labels(), Splits()
    try:
        for block in parquet_blocks(manifest, kind) if is_parquet else csv_blocks(manifest, kind):
            checked, reasons = check(block, contain, labels, groups, splits)
            for position, reason in sorted(reasons.items()):
                report(manifest, number + position + 1, reason, faults)
                dropped.add(number + position + 1)
            number += len(checked.paths)
            if reasons:
                checked = take(checked, (row for row in range(len(checked.paths)) if row not in reasons))
            found.paths.extend(checked.paths)
            found.labels.extend(checked.labels)
            found.splits.extend(checked.splits)
            found.groups.extend(checked.groups or [])  # type: ignore[union-attr]  # a list here
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        what = "Parquet file" if is_parquet else "CSV file in UTF-8"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {str(manifest)!r} as a {what} ({reason!r}); write it again") from error
    if not found.paths and not faults:
        raise UserError(f"manifest {str(manifest)!r} has no rows; give it one per image")
    if len(set(found.paths)) < len(found.paths):
        found = without_repeated(found, dropped, manifest, faults)
    if not any(found.groups or []):
        found = found._replace(groups=None)
    return without_nan(found) if kind == "class" else found


def report(manifest: Path, number: int, reason: str, faults: list[str] | None) -> None:
    """Collect what is wrong with a row, or raise it.

    Raises:
        UserError: ``faults`` is None.
    """
    line = f"manifest {str(manifest)!r}, row {number}: {reason}"
    if faults is None:
        raise UserError(line)
    faults.append(line)


Cleaned = Mapping[str | None, str | None]


def check(
    block: Block, contain: Containment, labels: Cleaned, groups: Cleaned, splits: Cleaned
) -> tuple[Columns, dict[int, str]]:
    """Return the values of some rows, and position -> fault of the rows to leave out."""
    reasons: dict[int, str] = {}
    checked = Columns(
        contain.all(block.cells[0], reasons),
        list(map(labels.__getitem__, block.cells[1])),
        list(map(splits.__getitem__, block.cells[2])),
        list(map(groups.__getitem__, block.cells[3])),
    )
    if UNKNOWN in checked.labels and isinstance(labels, Numbers):
        for position, label in enumerate(checked.labels):
            if label == UNKNOWN:
                cell = (block.cells[1][position] or "").strip()
                reasons.setdefault(position, f"target {cell[:40]!r} is not a number; name the column label for classes")
    if UNKNOWN in checked.splits:
        for position, split in enumerate(checked.splits):
            if split == UNKNOWN:
                word = (block.cells[2][position] or "").strip()
                known = f"unknown split {word!r}; use train, val or test, or leave it empty"
                reasons.setdefault(position, known)
    for position in block.ragged:
        reasons[position] = "more cells than columns; put quotes around values with a comma"
    return checked, reasons


def without_repeated(found: Columns, dropped: set[int], manifest: Path, faults: list[str] | None) -> Columns:
    """Keep the first row of each path."""
    first: dict[str, int] = {}
    kept = []
    numbers = (number for number in itertools.count(1) if number not in dropped)
    for position, (path, number) in enumerate(zip(found.paths, numbers, strict=False)):
        if path in first:
            report(manifest, number, f"{path!r} is already row {first[path]}; keep one of the two", faults)
        else:
            first[path] = number
            kept.append(position)
    return take(found, kept)


def without_nan(found: Columns) -> Columns:
    """Replace the label ``nan`` by None if all other labels are numbers."""
    labels = {label for label in set(found.labels) if label}
    others = labels - MISSING_NUMBERS
    if labels == others or not others or not all(map(is_number, others)):
        return found
    return found._replace(labels=[None if label in MISSING_NUMBERS else label for label in found.labels])


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def columns_of(kind: Kind) -> list[str]:
    """Return the four columns to read, the label (or what stands for it) as the second."""
    return [TARGETS[kind].column if name == "label" else name for name in COLUMNS]


def csv_blocks(manifest: Path, kind: Kind = "class") -> Iterator[Block]:
    """Yield the four columns in blocks of rows."""
    with open_csv(manifest) as opened:
        reader = csv.reader(opened.lines, strict=True, delimiter=opened.delimiter)
        names = next(reader, [])
        check_columns(names, manifest, kind)
        positions = [names.index(name) if name in names else -1 for name in columns_of(kind)]
        rows = filter(None, reader)  # a blank line is not a row
        while block := list(itertools.islice(rows, BLOCK_ROWS)):
            lengths = list(map(len, block))
            if min(lengths) < len(names):  # missing cells are empty
                block = [cells + [""] * len(names) for cells in block]
            ragged = [row for row, length in enumerate(lengths) if length > len(names)]
            nothing: Cells = [None] * len(block)
            cells: list[Cells] = [nothing if at < 0 else [row[at] for row in block] for at in positions]
            if kind == "number":
                cells[1] = list(map(opened.number, cells[1]))
            yield Block(cells, ragged)


def parquet_blocks(manifest: Path, kind: Kind = "class") -> Iterator[Block]:
    """Yield the four columns as text in blocks of rows.

    Raises:
        ValueError: a column is not text; the file would unpack into gigabytes.
    """
    metadata = pq.read_metadata(manifest)
    schema = metadata.schema.to_arrow_schema()
    check_columns(schema.names, manifest, kind)
    columns = [name for name in columns_of(kind) if name in schema.names]
    lists = [name for name in columns if kind == "labels" and name == "label" and is_list(schema.field(name).type)]
    plain = [name for name in columns if name not in lists]
    if not {metadata.schema.column(index).path for index in range(metadata.num_columns)}.issuperset(plain):
        raise ValueError("a column contains lists or records instead of text")
    # The size of each column would be exact, but with damaged metadata pyarrow then ends the process.
    vectors = sum(4 * field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups) - metadata.num_rows * vectors
    check_unpacked(unpacked)
    paths = 0
    # Dictionaries are kept, so that a long text repeated a million times is one Python object. Paths do not repeat.
    with pq.ParquetFile(manifest, read_dictionary=[name for name in plain if name != "path"]) as file:
        for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=columns):
            batch.validate(full=True)  # flipped bits may make indices outside of their dictionary
            paths += sum(batch.column(name).nbytes for name in ["path", *lists])
            check_unpacked(paths)
            cells = {name: texts(batch.column(name)) for name in columns}
            nothing: Cells = [None] * len(batch)
            yield Block([cells.get(name, nothing) for name in columns_of(kind)], ())


def check_unpacked(size: int) -> None:
    """Raise ValueError if a file would take too much memory."""
    if size > MAX_PARQUET_BYTES:
        raise ValueError(f"its paths and labels unpack to {size} bytes, more than {MAX_PARQUET_BYTES}")


def texts(column: pa.Array) -> list[str | None]:
    """Return the cells of a column as text; NaN is None."""
    if pa.types.is_dictionary(column.type):
        used = column.indices.dictionary_encode()  # the dictionary may be that of the whole file
        words = texts(column.dictionary.take(used.dictionary))
        return [None if index is None else words[index] for index in used.indices.to_pylist()]
    if is_list(column.type):
        return list(map(joined_cell, column.to_pylist()))
    cells: list[str | None] = column.cast(pa.string()).to_pylist()
    if pa.types.is_floating(column.type):
        return [None if cell == "nan" else cell for cell in cells]
    return cells


def is_list(kind: pa.DataType) -> bool:
    """Return whether the type of a column is lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def joined_cell(labels: Sequence[object] | None) -> str | None:
    """Return a list of labels as one text.

    Raises:
        ValueError: a label has a bar, which stands between labels, or is itself a list.
    """
    if labels is None:
        return None
    names = [str(label) for label in labels if label is not None]
    if barred := [name for name in names if BAR in name]:
        raise ValueError(f"the label {barred[0]!r} has a {BAR} in it, which stands between labels")
    return joined_labels(names)


def check_columns(names: Sequence[str], manifest: Path, kind: Kind = "class") -> None:
    """Validate the column names; warn if there is no label but a column with a similar name.

    Raises:
        UserError: there is no column, no ``path``, or one of the four columns twice.
    """
    if not names:
        raise UserError(f"manifest {str(manifest)!r} is empty; give it the columns path[,label][,split][,group]")
    if "path" not in names:
        nearest = most_similar(names, "path")[:40]
        raise UserError(f"manifest {str(manifest)!r} has no column 'path'; rename the nearest one, {nearest!r}")
    for name in columns_of(kind):
        if names.count(name) > 1:
            raise UserError(f"manifest {str(manifest)!r} has the column {name!r} twice; rename or remove one of them")
    others = [name for name in names if name not in columns_of(kind) and name.strip()]
    if others and TARGETS[kind].column not in names:
        nearest = most_similar(others, "label")[:40]
        log.warning("%r has no column 'label' (it has %r): its images have no labels", str(manifest), nearest)


def most_similar(names: Sequence[str], column: str) -> str:
    """Return the name that is most similar to a usual name of a column."""

    def similarity(name: str) -> float:
        others = OTHER_NAMES[column]
        return max(difflib.SequenceMatcher(None, name.strip().lower(), other).ratio() for other in others)

    return max(names, key=similarity)
