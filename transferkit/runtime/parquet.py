"""Parquet files from others: their size in memory is checked before they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transferkit.errors import UserError

# Floats of embeddings hardly compress: a table that exceeds both limits is not one of embeddings.
MAX_RATIO, MAX_BYTES = 100, 2**30
BATCH, BUFFER = 4096, 2**20  # rows, and bytes of a file, that are unpacked at a time


def read_table(file: str | Path, columns: Sequence[str] | None = None, lists: Sequence[str] = ()) -> pa.Table:
    """Read and validate one Parquet file; columns of text become plain strings.

    Args:
        file: the file.
        columns: columns to read, of those that it has; all if ``None``.
        lists: columns that may be lists of text of variable length.

    Raises:
        pa.ArrowException: the file is not Parquet, is damaged, is small but unpacks into gigabytes, or has a column
            of lists of variable length, whose size is not known beforehand.
        OSError: it cannot be opened, or is damaged.
    """
    try:
        metadata = pq.read_metadata(file)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid("a column has a name that is not UTF-8") from error
    schema: pa.Schema = metadata.schema.to_arrow_schema()
    fields = [field for field in schema if columns is None or field.name in columns]
    for field in fields:
        if field.name in lists and pa.types.is_list(field.type) and is_text(field.type.value_type):
            continue
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_map(field.type):
            raise pa.ArrowInvalid(f"column {field.name} is {field.type}, not a list of fixed size")
    # The size of each column would be exact, but with damaged metadata pyarrow then ends the process.
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    vectors = sum(4 * field.type.list_size for field in fields if pa.types.is_fixed_size_list(field.type))
    packed = Path(file).stat().st_size
    check_size(sum(group.total_byte_size for group in groups) + metadata.num_rows * vectors, packed)
    texts = [field.name for field in fields if is_text(field.type)]
    table = read_in_batches(file, [field.name for field in fields], texts)
    table.validate(full=True)  # flipped bits may make indices outside of their dictionary
    check_size(sum(text_bytes(table[name]) for name in texts), packed)
    plain = [pa.field(field.name, pa.string()) if field.name in texts else field for field in fields]
    return table.cast(pa.schema(plain, table.schema.metadata))


def read_in_batches(file: str | Path, columns: Sequence[str], texts: Sequence[str]) -> pa.Table:
    """Read columns a few thousand rows at a time, text with a dictionary.

    Read at once, a column of embeddings takes four times its size while it is unpacked.
    """
    with pq.ParquetFile(file, read_dictionary=texts, pre_buffer=False, buffer_size=BUFFER) as opened:
        schema = pa.schema([opened.schema_arrow.field(name) for name in columns], opened.schema_arrow.metadata)
        table = pa.Table.from_batches(opened.iter_batches(BATCH, columns=columns, use_threads=False), schema)
    pa.default_memory_pool().release_unused()
    return table


def values_of(table: pa.Table, name: str) -> list[Any] | None:
    """Return the values of a column, None if the table does not have it."""
    return list(table[name].to_pylist()) if name in table.column_names else None


def is_text(kind: Any) -> bool:
    """Return whether the type of a column is text, also large or dictionary-encoded."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def check_size(unpacked: int, packed: int) -> None:
    """Validate the size of a file in memory.

    Raises:
        pa.ArrowInvalid: it is too large.
    """
    if unpacked > max(MAX_BYTES, MAX_RATIO * packed):
        raise pa.ArrowInvalid(f"its {packed} bytes unpack into {unpacked}")


def text_bytes(column: Any) -> int:
    """Return the bytes of a column of text without a dictionary."""
    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            total += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
        else:
            total += pc.sum(pc.binary_length(chunk)).as_py() or 0
    return total


def check_suffix(path: str | Path) -> None:
    """Raise for the name of a file of another format than Parquet.

    Raises:
        UserError: naming ``path`` and the remedy.
    """
    if Path(path).suffix.lower() not in (".parquet", ".pq", ""):
        raise UserError(
            f"`path` {str(path)!r} does not end in .parquet, the format that is written; name it so, or call "
            "to_pandas() and a writer of pandas, such as to_csv"
        )
