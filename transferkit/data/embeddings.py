"""The embeddings table: one row per image, as Parquet that any data tool opens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.data.columns import take
from transferkit.errors import UserError
from transferkit.runtime.files import atomic_path
from transferkit.runtime.parquet import read_table

KEY = b"transferkit"
TEXTS = ["path", "label", "split"]
GROUP = "group"  # a column that a table has if its images have groups


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with paths, labels and splits; rows are sorted by path.

    Attributes:
        embedding: float32 (N, D).
        paths: path of each image relative to its root, N of them.
        labels: class name of each row, or None.
        splits: ``train``, ``val``, ``test`` or None for each row.
        metadata: extractor, the fields of :class:`~transferkit.embed.embedding_space.EmbeddingSpace` (weights_sha256,
            architecture, preprocessing, pooling, layer, features, normalize, precision, dtype of the computation,
            engine, device, space_format) and their hash (space), embed_dim, shape, augmentation, batch_size,
            versions, data_fingerprint, broken (path -> why it is left out), and reused (the number of rows that
            were computed among other images, if any). Tables of earlier versions lack some of these.
        groups: name of the group of each row, or None; None for a table without groups.
    """

    embedding: Tensor
    paths: Sequence[str]
    labels: Sequence[str | None]
    splits: Sequence[str | None]
    metadata: Mapping[str, Any]
    groups: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Path -> row; of a path that is in the table twice, the last one."""
        return {path: row for row, path in enumerate(self.paths)}

    def select(self, rows: Sequence[int]) -> "Embeddings":
        """Return the given rows, in that order."""
        embedding = self.embedding[torch.as_tensor(rows, dtype=torch.long)]
        paths, labels, splits, groups = take(self, rows)
        return Embeddings(embedding, paths, labels, splits, self.metadata, groups)

    def save(self, path: str | Path) -> None:
        """Write one Parquet file atomically."""
        table = to_arrow(self)
        with atomic_path(path) as temporary, writer(temporary, table.schema) as parquet:
            parquet.write_table(table)

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Read a table written by :meth:`save`, or a directory of its shards.

        Raises:
            UserError: the file is missing, truncated, not Parquet, or not an embeddings table.
        """
        path = Path(path)
        return from_arrow(read(path), path)


class Facts(NamedTuple):
    """An embeddings table without its embeddings; fields as of :class:`Embeddings`."""

    paths: list[str]
    labels: list[str | None]
    splits: list[str | None]
    metadata: dict[str, Any]
    groups: list[str | None] | None = None


def read_facts(path: str | Path) -> Facts:
    """Read everything but the embeddings of a table or of a directory of shards.

    Raises:
        UserError: the file is missing, truncated, not Parquet, or not an embeddings table.
    """
    path = Path(path)
    table = read(path, [*TEXTS, GROUP])
    metadata = metadata_of(table.schema, path)
    check_texts(table, path)
    paths, labels, splits = (table[name].to_pylist() for name in TEXTS)
    return Facts(paths, labels, splits, metadata, groups_of(table))


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file or a directory of shards, whose ``broken`` in the metadata is merged.

    Raises:
        UserError: the file is missing or not readable, or the shards do not belong together.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; embed images to write it")
    try:
        if path.is_file():
            return read_table(path, columns)
        if not path.is_dir():
            raise UserError(f"{path} is neither a file nor a folder; give an embeddings file or folder of shards")
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise UserError(f"{path} is a folder without .parquet files; give an embeddings file or folder of shards")
        parts = [read_table(file, columns) for file in files]
        found = [metadata_of(part.schema, file) for part, file in zip(parts, files, strict=True)]
        for file, one in zip(files, found, strict=True):
            differing = [key for key in one.keys() | found[0].keys() if one.get(key) != found[0].get(key)]
            if set(differing) - {"broken"}:
                raise UserError(
                    f"{file} differs from {files[0].name} in {min(differing)}: they are shards of two tables; "
                    "embed again into an empty folder"
                )
        broken = {name: why for one in found for name, why in one.get("broken", {}).items()}
        metadata = found[0] | ({"broken": broken} if "broken" in found[0] else {})
        bare = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
        return bare.replace_schema_metadata({KEY: json.dumps(metadata, sort_keys=True).encode()})
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def with_metadata(schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.Schema:
    """Return a schema with other metadata under the key ``transferkit``."""
    return schema.with_metadata({KEY: json.dumps(dict(metadata), sort_keys=True).encode()})


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a Parquet writer without a dictionary for the floats, which hardly repeat.

    Checksums let the feature cache detect flipped bits, which do not show in floats.
    """
    return pq.ParquetWriter(path, schema, use_dictionary=["label", "split"], write_page_checksum=True)


def metadata_of(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Return the metadata under the key ``transferkit``; ``path`` is for messages.

    Raises:
        UserError: the key is missing, or its value is not JSON.
    """
    if KEY not in (schema.metadata or {}):
        raise UserError(f"{path} is not an embeddings table (no transferkit metadata); embed images to write one")
    try:
        return dict(json.loads(schema.metadata[KEY]))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its transferkit metadata is not a JSON object ({error}); write it again") from error


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


def to_arrow(embeddings: Embeddings) -> pa.Table:
    """Return columns path, label, split, group (if any) and embedding; the metadata is JSON under ``transferkit``."""
    values = embeddings.embedding.detach().to("cpu", torch.float32).contiguous()
    width = values.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), width)
    columns = {
        "path": pa.array(embeddings.paths, pa.string()),
        "label": pa.array(embeddings.labels, pa.string()),
        "split": pa.array(embeddings.splits, pa.string()),
    }
    if embeddings.groups is not None:
        columns[GROUP] = pa.array(embeddings.groups, pa.string())
    columns["embedding"] = column
    bare = pa.table(columns)
    return bare.cast(with_metadata(bare.schema, embeddings.metadata))


def from_arrow(table: pa.Table, path: Path) -> Embeddings:
    """Return the embeddings in a table of :func:`to_arrow`; ``path`` is for messages.

    Raises:
        UserError: a column or the metadata is missing, or of another type.
    """
    missing = {"path", "label", "split", "embedding"} - set(table.column_names)
    if missing:
        what = f"no column {', '.join(sorted(missing))}"
        raise UserError(f"{path} is not an embeddings table ({what}); embed images to write one")
    metadata = metadata_of(table.schema, path)
    kind = table.schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise UserError(f"{path}: column embedding is {kind}, a fixed-size list of float32 was expected")
    if table["embedding"].null_count:
        raise UserError(f"{path}: {table['embedding'].null_count} rows have no embedding; write it again")
    check_texts(table, path)
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["embedding"].chunks]
    flat = np.concatenate([np.empty(0, np.float32), *chunks])
    return Embeddings(
        embedding=torch.from_numpy(flat).reshape(-1, kind.list_size),
        paths=table["path"].to_pylist(),
        labels=table["label"].to_pylist(),
        splits=table["split"].to_pylist(),
        metadata=metadata,
        groups=groups_of(table),
    )


def groups_of(table: pa.Table) -> list[str | None] | None:
    """Return the column group, None if there is none."""
    return table[GROUP].to_pylist() if GROUP in table.column_names else None
