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
from transferkit.parquet import read_table

KEY = b"transferkit"


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
            UserError: not there, not Parquet, truncated, or not an embeddings table.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist; write it with: transferkit embed IMAGES --out {path}")
        try:
            files = pq.ParquetDataset(path).files
            table = pa.concat_tables(map(read_table, files)) if files else pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
        return from_arrow(table, path)


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


def from_arrow(table: pa.Table, path: Path) -> Embeddings:
    """The inverse of :func:`to_arrow`; ``path`` is for messages.

    Raises:
        UserError: columns or metadata of an embeddings table are missing.
    """
    missing = {"path", "label", "split", "embedding"} - set(table.column_names)
    if missing or KEY not in (table.schema.metadata or {}):
        what = f"no column {', '.join(sorted(missing))}" if missing else "no transferkit metadata"
        raise UserError(f"{path} is not an embeddings table ({what}); write one with transferkit embed")
    kind = table.schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise UserError(f"{path}: column embedding is {kind}, a fixed-size list of float32 was expected")
    if table["embedding"].null_count:
        raise UserError(f"{path}: {table['embedding'].null_count} rows have no embedding; write it again")
    for name in ("path", "label", "split"):
        if not (pa.types.is_string(table[name].type) or pa.types.is_null(table[name].type)):
            raise UserError(f"{path}: column {name} is {table[name].type}, text was expected; write it again")
    if table["path"].null_count:
        raise UserError(f"{path}: {table['path'].null_count} rows have no path; write it again")
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["embedding"].chunks]
    flat = np.concatenate([np.empty(0, np.float32), *chunks])
    try:
        metadata = dict(json.loads(table.schema.metadata[KEY]))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its transferkit metadata is no JSON object ({error}); write it again") from error
    return Embeddings(
        embedding=torch.from_numpy(flat).reshape(-1, kind.list_size),
        paths=table["path"].to_pylist(),
        labels=table["label"].to_pylist(),
        splits=table["split"].to_pylist(),
        metadata=metadata,
    )
