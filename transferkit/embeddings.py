"""The embeddings table: one row an image, as Parquet that any data tool opens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.files import atomic_path

KEY = b"transferkit"
TEXTS = ["path", "label", "split"]
# Floats of embeddings hardly compress: a table that unpacks so far is no honest one.
MAX_BYTES, MAX_RATIO = 2**30, 100


@dataclass(frozen=True)
class Embeddings:
    """Rows sorted by path.

    Attributes:
        embedding: float32 (N, D).
        paths: path of each image relative to its root, N of them.
        labels: class name of each row, or None.
        splits: ``train``, ``val``, ``test`` or None for each row.
        metadata: extractor, weights_sha256, preprocessing, pooling, embed_dim, dtype, versions,
            data_fingerprint.
    """

    embedding: Tensor
    paths: Sequence[str]
    labels: Sequence[str | None]
    splits: Sequence[str | None]
    metadata: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Sequence[int]) -> "Embeddings":
        """The given rows, in that order."""
        return replace(
            self,
            embedding=self.embedding[torch.as_tensor(rows, dtype=torch.long)],
            paths=[self.paths[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            splits=[self.splits[row] for row in rows],
        )

    def save(self, path: str | Path) -> None:
        """Write one Parquet file, whole or not at all."""
        with atomic_path(path) as temporary:
            pq.write_table(to_arrow(self), temporary)

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Read a table written by :meth:`save`, or a directory of its shards.

        Raises:
            UserError: not there, not Parquet, truncated, not an embeddings table, or a small file that unpacks
                into gigabytes.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist; write it with: transferkit embed IMAGES --out {path}")
        try:
            files = pq.ParquetDataset(path).files
            for file in files:
                check_schema(pq.read_schema(file), path)
            unpacked, packed = sum(map(unpacked_bytes, files)), sum(Path(file).stat().st_size for file in files)
            if unpacked > max(MAX_BYTES, MAX_RATIO * packed):
                raise UserError(f"{path} holds {packed} bytes that unpack into {unpacked}; embeddings do not: leave it")
            table = pq.read_table(path, read_dictionary=TEXTS)
            table.validate(full=True)  # flipped bits make indices that lead out of their dictionary
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
        return from_arrow(table, path)


def unpacked_bytes(file: str) -> int:
    """Bytes that an embeddings table takes in memory at most, by its own metadata; a repeated text counts once."""
    metadata = pq.read_metadata(file)
    width = metadata.schema.to_arrow_schema().field("embedding").type.list_size
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return int(sum(group.total_byte_size for group in groups) + 4 * metadata.num_rows * width)


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """A column as text; rows with the same text of a dictionary share it, so that it is in memory once.

    Raises:
        pa.ArrowException: it cannot be read as text.
    """
    values: list[str | None] = []
    for chunk in column.chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.cast(pa.string()).dictionary_encode()
        words: list[str | None] = encoded.dictionary.cast(pa.string()).to_pylist()
        values += [None if index is None else words[index] for index in encoded.indices.to_pylist()]
    return values


def to_arrow(embeddings: Embeddings) -> pa.Table:
    """Columns path, label, split and embedding; the metadata as JSON under the key ``transferkit``."""
    values = embeddings.embedding.detach().to("cpu", torch.float32).contiguous()
    width = values.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), width)
    columns = {
        "path": pa.array(embeddings.paths, pa.string()),
        "label": pa.array(embeddings.labels, pa.string()),
        "split": pa.array(embeddings.splits, pa.string()),
        "embedding": column,
    }
    text = json.dumps(dict(embeddings.metadata), sort_keys=True)
    return pa.table(columns).replace_schema_metadata({KEY: text.encode()})


def check_schema(schema: pa.Schema, path: Path) -> None:
    """Refuse what is no embeddings table.

    Raises:
        UserError: columns or metadata of one are missing.
    """
    missing = {*TEXTS, "embedding"} - set(schema.names)
    if missing or KEY not in (schema.metadata or {}):
        what = f"no column {', '.join(sorted(missing))}" if missing else "no transferkit metadata"
        raise UserError(f"{path} is not an embeddings table ({what}); write one with transferkit embed")
    kind = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise UserError(f"{path}: column embedding is {kind}, a fixed-size list of float32 was expected")


def from_arrow(table: pa.Table, path: Path) -> Embeddings:
    """The inverse of :func:`to_arrow`; ``path`` is for messages.

    Raises:
        UserError: columns or metadata of an embeddings table are missing.
    """
    check_schema(table.schema, path)
    if table["embedding"].null_count:
        raise UserError(f"{path}: {table['embedding'].null_count} rows have no embedding; write it again")
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["embedding"].chunks]
    flat = np.concatenate([np.empty(0, np.float32), *chunks])
    try:
        metadata = dict(json.loads(table.schema.metadata[KEY]))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its transferkit metadata is no JSON object ({error}); write it again") from error
    try:
        paths, labels, splits = (texts(table[name]) for name in TEXTS)
    except pa.ArrowException as error:
        raise UserError(f"{path}: a column of {', '.join(TEXTS)} holds no text ({error}); write it again") from error
    if None in paths:
        raise UserError(f"{path}: {paths.count(None)} rows have no path; write it again")
    return Embeddings(
        embedding=torch.from_numpy(flat).reshape(len(table), table.schema.field("embedding").type.list_size),
        paths=[name for name in paths if name is not None],
        labels=labels,
        splits=splits,
        metadata=metadata,
    )
