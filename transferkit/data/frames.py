"""Tables of other libraries from and to Arrow: pandas, polars, DuckDB, Hugging Face datasets."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from transferkit.data.columns import GROUP, TEXTS
from transferkit.data.label_columns import NUMBER, unpack
from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.runtime.optional import optional

KEY = "transferkit"


class Rows(NamedTuple):
    """The fields of :class:`~transferkit.data.embeddings.Embeddings`."""

    embedding: Tensor
    paths: Sequence[str]
    labels: Sequence[str | None]
    splits: Sequence[str | None]
    metadata: dict[str, Any]
    groups: Sequence[str | None] | None = None
    kind: Kind = "class"


def to_pandas(table: pa.Table) -> Any:
    """Return a ``pandas.DataFrame`` whose column ``embedding`` holds arrays; metadata is in ``attrs``."""
    optional("pandas")
    frame = table.to_pandas()
    frame.attrs[KEY] = (table.schema.metadata or {}).get(KEY.encode(), b"{}").decode()
    return frame


def to_polars(table: pa.Table) -> Any:
    """Return a ``polars.DataFrame`` whose column ``embedding`` is an ``Array(Float32, D)``; it has no metadata."""
    return optional("polars").from_arrow(table)


def to_duckdb(table: pa.Table, connection: Any = None) -> Any:
    """Return a DuckDB relation whose column ``embedding`` is a ``FLOAT[D]``; it has no metadata."""
    return (connection or optional("duckdb")).from_arrow(table)


def to_datasets(table: pa.Table) -> Any:
    """Return a ``datasets.Dataset`` whose column ``embedding`` is a ``List(Value("float32"), D)``."""
    return optional("datasets").Dataset(table)


def to_arrow(frame: Any, name: str) -> pa.Table:
    """Return an Arrow table of what another library calls a table.

    Args:
        frame: of pandas, polars, DuckDB, Hugging Face datasets or Arrow, or columns by name.
        name: of the argument, for messages.

    Raises:
        UserError: it is none of these, or has columns that Arrow cannot hold.
    """
    try:
        for method, convert in CONVERSIONS:
            if hasattr(frame, method):
                return convert(frame)
        if isinstance(frame, pa.Table):
            return frame
        if isinstance(frame, Mapping):
            return pa.table(dict(frame))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"{name}: its columns cannot be converted: {str(error).splitlines()[0]}") from error
    raise UserError(
        f"{name} is of type {type(frame).__name__}; give a table of pandas, polars, Arrow, DuckDB or datasets"
    )


def from_pandas(frame: Any) -> pa.Table:
    """Return the columns that embeddings have, of a ``pandas.DataFrame``."""
    columns = {name: frame[name] for name in (*TEXTS, GROUP, NUMBER, "embedding") if name in frame.columns}
    table = pa.table({name: pa.array(list(values), from_pandas=True) for name, values in columns.items()})
    return table.replace_schema_metadata({KEY: frame.attrs[KEY]} if KEY in frame.attrs else None)


CONVERSIONS: tuple[tuple[str, Callable[[Any], pa.Table]], ...] = (  # a method that tells a library's class
    ("iloc", from_pandas),
    ("fetchnumpy", lambda relation: relation.to_arrow_table()),
    ("with_columns", lambda frame: (frame.collect() if hasattr(frame, "collect") else frame).to_arrow()),
    ("cast_column", lambda dataset: dataset.with_format("arrow")[:]),
)


def texts(table: pa.Table, column: str, name: str) -> list[str | None]:
    """Return a column of text, numbers converted; all None if it is missing.

    Raises:
        UserError: it is neither text nor numbers.
    """
    if column not in table.column_names:
        return [None] * len(table)
    try:
        values = table[column].cast(pa.string()) if not pa.types.is_null(table[column].type) else table[column]
    except pa.ArrowException as error:
        raise UserError(f"{name}: column {column} is {table[column].type}; text was expected") from error
    found: list[str | None] = values.to_pylist()
    return found


def matrix(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the column ``embedding`` as float32 (N, D).

    Raises:
        UserError: it is missing, not of numbers, or its rows differ in length.
    """
    if "embedding" not in table.column_names:
        raise UserError(f"{name} has no column embedding, only {', '.join(table.column_names)}; rename the one it is")
    column = table["embedding"].combine_chunks()
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{name}: column embedding is {kind}; a list of numbers per row was expected")
    if column.null_count:
        raise UserError(f"{name}: {column.null_count} rows have no embedding; leave them out")
    lengths = set(pa.compute.list_value_length(column).to_pylist())
    if len(lengths) > 1:
        raise UserError(f"{name}: embeddings of {min(lengths)} to {max(lengths)} numbers; all must be of one length")
    try:
        flat = column.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise UserError(f"{name}: column embedding is {kind}; numbers were expected") from error
    return np.array(flat, dtype=np.float32).reshape(len(table), lengths.pop() if lengths else 0)


def metadata(table: pa.Table) -> dict[str, Any]:
    """Return the metadata of embeddings that a table carries; empty if it carries none."""
    try:
        return dict(json.loads((table.schema.metadata or {}).get(KEY.encode(), b"{}")))
    except (ValueError, TypeError):
        return {}


def common_metadata(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that all tables share, and what was left out of any."""
    first, *others = map(dict, parts)
    shared = {key: value for key, value in first.items() if all(other.get(key, ...) == value for other in others)}
    broken = {path: why for one in (first, *others) for path, why in (one.get("broken") or {}).items()}
    return shared | ({"broken": broken} if "broken" in first else {})


def rows_of_array(
    array: Any,
    paths: Sequence[str] | None,
    labels: Sequence[Any] | None,
    splits: Sequence[str | None] | None,
    metadata: Mapping[str, Any] | None,
    groups: Sequence[str | None] | None = None,
) -> Rows:
    """Return the fields of embeddings (N, D); paths are the numbers of the rows by default, labels become text.

    Raises:
        UserError: the array is not (N, D), or the others are of another length.
    """
    try:
        embedding = torch.from_numpy(np.array(array, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise UserError(f"array cannot be converted to float32: {str(error).splitlines()[0]}") from error
    if embedding.ndim != 2:
        raise UserError(f"array has the shape {tuple(embedding.shape)}; give (N, D)")
    count = len(embedding)
    for name, values in (("paths", paths), ("labels", labels), ("splits", splits), ("groups", groups)):
        if values is not None and len(values) != count:
            raise UserError(f"{name}: {len(values)} for {count} rows; give one per row")
    numbers = [f"{row:0{len(str(count - 1))}d}" for row in range(count)]  # in order also as text
    return Rows(
        embedding,
        numbers if paths is None else [str(path) for path in paths],
        [None if label is None else str(label) for label in ([None] * count if labels is None else labels)],
        [None] * count if splits is None else list(splits),
        dict(metadata or {}),
        groups,
    )


def rows_of_frame(frame: Any, given: Mapping[str, Any] | None) -> Rows:
    """Return the fields of embeddings in another library's table; ``given`` replaces the metadata that it carries.

    Raises:
        UserError: a column is missing or of another type.
    """
    table, kind = unpack(to_arrow(frame, "table"))
    paths = list(row_of_path(table, "table")) if "path" in table.column_names else None
    labels, splits = (texts(table, column, "table") for column in ("label", "split"))
    groups = texts(table, GROUP, "table") if GROUP in table.column_names else None
    known = metadata(table) if given is None else given
    return rows_of_array(matrix(table, "table"), paths, labels, splits, known, groups)._replace(kind=kind)


def row_of_path(table: pa.Table, name: str) -> dict[str, int]:
    """Return path -> row.

    Raises:
        UserError: there is no column ``path``, or a row without a path or with that of another row.
    """
    if "path" not in table.column_names:
        raise UserError(f"{name} has no column path, only {', '.join(table.column_names)}; rename the one it is")
    row_of: dict[str, int] = {}
    for row, path in enumerate(texts(table, "path", name)):
        if path is None or path in row_of:
            raise UserError(
                f"{name}: row {row} has {'no path' if path is None else f'the path {path!r} again'}; drop it"
            )
        row_of[path] = row
    return row_of
