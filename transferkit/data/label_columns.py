"""The columns of an embeddings table that hold its targets: text of classes, lists of labels, or numbers.

Tables of classes are as they always were. The others are of format 2, which earlier versions refuse.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from transferkit.data.columns import GROUP, TEXTS
from transferkit.data.targets import NAME_OF_NUMBER, Kind, joined_labels, number_of, parts_of
from transferkit.errors import UserError
from transferkit.runtime.parquet import is_text

KEY = "table_format"  # in the metadata
FORMAT = 2
LISTS = ("label",)  # columns that may be lists of text
NUMBER = NAME_OF_NUMBER


def pack(labels: Sequence[str | None], kind: Kind) -> dict[str, pa.Array]:
    """Return the column ``label``: text, or lists of text; with numbers, the column ``target`` beside an empty one."""
    if kind == "labels":
        lists = [None if label is None else list(parts_of(label)) for label in labels]
        return {"label": pa.array(lists, pa.list_(pa.string()))}
    if kind == "number":
        numbers = [number_of(label) for label in labels]
        return {"label": pa.array([None] * len(labels), pa.string()), NUMBER: pa.array(numbers, pa.float64())}
    return {"label": pa.array(labels, pa.string())}


def is_list(kind: pa.DataType) -> bool:
    """Return whether the type of a column is lists of text."""
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and is_text(kind.value_type))


def is_number(table: pa.Table) -> bool:
    """Return whether a table has numbers in place of labels; a column that somebody has added does not count."""
    names = table.column_names
    if NUMBER not in names or not pa.types.is_float64(table.schema.field(NUMBER).type):
        return False
    return "label" not in names or table["label"].null_count == len(table)


def version_of(kind: Kind) -> dict[str, int]:
    """Return the entry of the metadata that names the format of a table; none for classes."""
    return {} if kind == "class" else {KEY: FORMAT}


def unpack(table: pa.Table) -> tuple[pa.Table, Kind]:
    """Return a table of :func:`pack` with its targets as the texts of a column ``label``, and their kind."""
    kind: Kind = "class"
    values: list[str | None] = []
    if "label" in table.column_names and is_list(table.schema.field("label").type):
        lists = table["label"].to_pylist()
        values = [None if names is None else joined_labels(name or "" for name in names) for names in lists]
        kind = "labels"
    elif is_number(table):
        values = [None if number is None else repr(number) for number in table[NUMBER].to_pylist()]
        kind, table = "number", table.drop_columns([NUMBER])
    if kind == "class" or "label" not in table.column_names:
        return table, kind
    place = table.column_names.index("label")
    return table.set_column(place, "label", pa.array(values, pa.string())), kind


def check_texts(table: pa.Table, path: Path) -> None:
    """Validate the columns of text.

    Raises:
        UserError: a column is missing or is not text; a path is missing.
    """
    for name in [*TEXTS, *({GROUP} & set(table.column_names))]:
        kind = table.schema.field(name).type if name in table.column_names else None
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_null(kind)):
            raise UserError(f"{path}: column {name} is {kind or 'missing'}, text was expected; write it again")
    if table["path"].null_count:
        raise UserError(f"{path}: {table['path'].null_count} rows have no path; write it again")
