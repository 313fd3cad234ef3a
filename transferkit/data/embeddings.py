"""The embeddings table: one row an image, as Parquet that any data tool opens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.runtime.files import atomic_path
from transferkit.runtime.parquet import read_table

KEY = b"transferkit"
TEXTS = ["path", "label", "split"]


@dataclass(frozen=True)
class Embeddings:
    """Rows sorted by path.

    Attributes:
        embedding: float32 (N, D).
        paths: path of each image relative to its root, N of them.
        labels: class name of each row, or None.
        splits: ``train``, ``val``, ``test`` or None for each row.
        metadata: extractor, the fields of :class:`~transferkit.embed.embedding_space.EmbeddingSpace` (weights_sha256,
            architecture, preprocessing, pooling, layer, features, normalize, precision, dtype of the computation,
            engine, device, space_format) and their hash (space), embed_dim, shape, augmentation, batch_size,
            versions, data_fingerprint, broken (path -> why it is left out), and reused (how many rows were
            computed among other images, where there are some). Tables of earlier versions lack some of these.
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
        table = to_arrow(self)
        with atomic_path(path) as temporary, writer(temporary, table.schema) as parquet:
            parquet.write_table(table)

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Read a table written by :meth:`save`, or a directory of its shards.

        Raises:
            UserError: not there, not Parquet, truncated, or not an embeddings table.
        """
        path = Path(path)
        return from_arrow(read(path), path)


class Facts(NamedTuple):
    """An embeddings table without its embeddings; fields as of :class:`Embeddings`."""

    paths: list[str]
    labels: list[str | None]
    splits: list[str | None]
    metadata: dict[str, Any]


def read_facts(path: str | Path) -> Facts:
    """Read all but the embeddings of a table or of a directory of shards.

    Raises:
        UserError: as of :meth:`Embeddings.load`.
    """
    path = Path(path)
    table = read(path, TEXTS)
    metadata = metadata_of(table.schema, path)
    check_texts(table, path)
    return Facts(table["path"].to_pylist(), table["label"].to_pylist(), table["split"].to_pylist(), metadata)


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file or a directory of shards; of these, ``broken`` in the metadata is joined.

    Raises:
        UserError: not there, not readable, or shards that do not belong together.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; write it with: transferkit embed IMAGES --out {path}")
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
                    f"{file} differs from {files[0].name} in {min(differing)}; they are shards of two tables"
                )
        broken = {name: why for one in found for name, why in one.get("broken", {}).items()}
        metadata = found[0] | ({"broken": broken} if "broken" in found[0] else {})
        bare = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
        return bare.replace_schema_metadata({KEY: json.dumps(metadata, sort_keys=True).encode()})
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def with_metadata(schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.Schema:
    """A schema with other metadata under the key ``transferkit``."""
    return schema.with_metadata({KEY: json.dumps(dict(metadata), sort_keys=True).encode()})


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer; a dictionary of floats that hardly repeat would only cost time.

    Checksums let the feature cache notice flipped bits, which floats would not show.
    """
    return pq.ParquetWriter(path, schema, use_dictionary=["label", "split"], write_page_checksum=True)


def metadata_of(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """The metadata under the key ``transferkit``; ``path`` is for messages.

    Raises:
        UserError: there is none, or it is no JSON.
    """
    if KEY not in (schema.metadata or {}):
        raise UserError(
            f"{path} is not an embeddings table (no transferkit metadata); write one with transferkit embed"
        )
    try:
        return dict(json.loads(schema.metadata[KEY]))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its transferkit metadata is no JSON object ({error}); write it again") from error


def check_texts(table: pa.Table, path: Path) -> None:
    """Refuse columns that hold no text.

    Raises:
        UserError: naming the column.
    """
    for name in TEXTS:
        kind = table.schema.field(name).type if name in table.column_names else None
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_null(kind)):
            raise UserError(f"{path}: column {name} is {kind or 'missing'}, text was expected; write it again")
    if table["path"].null_count:
        raise UserError(f"{path}: {table['path'].null_count} rows have no path; write it again")


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
    bare = pa.table(columns)
    return bare.cast(with_metadata(bare.schema, embeddings.metadata))


def from_arrow(table: pa.Table, path: Path) -> Embeddings:
    """The inverse of :func:`to_arrow`; ``path`` is for messages.

    Raises:
        UserError: columns or metadata of an embeddings table are missing.
    """
    missing = {"path", "label", "split", "embedding"} - set(table.column_names)
    if missing:
        what = f"no column {', '.join(sorted(missing))}"
        raise UserError(f"{path} is not an embeddings table ({what}); write one with transferkit embed")
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
    )
