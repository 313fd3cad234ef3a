"""The embeddings table: one row per image, as Parquet that any data tool opens."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.data import frames, label_columns
from transferkit.data.columns import GROUP, TEXTS, take
from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.runtime.files import atomic_path
from transferkit.runtime.parquet import check_suffix, read_table, values_of

KEY = b"transferkit"


@dataclass(frozen=True)
class Embeddings:
    """Embeddings with paths, labels and splits; rows are sorted by path.

    Attributes:
        embedding: float32 (N, D).
        paths: path of each image relative to its root, N of them.
        labels: class name of each row, or None; or another target, as a text of its kind.
        splits: ``train``, ``val``, ``test`` or None for each row.
        metadata: extractor, the fields of :class:`~transferkit.embed.embedding_space.EmbeddingSpace` (weights_sha256,
            architecture, preprocessing, pooling, layer, features, normalize, precision, dtype of the computation,
            engine, device, space_format) and their hash (space), embed_dim, shape, augmentation, batch_size,
            versions, data_fingerprint, broken (path -> why it is left out), and reused (the number of rows that
            were computed among other images, if any). Tables of earlier versions lack some of these.
        groups: name of the group of each row, or None; None for a table without groups.
        kind: what the labels are, see :mod:`transferkit.data.targets`.
    """

    embedding: Tensor
    paths: Sequence[str]
    labels: Sequence[str | None]
    splits: Sequence[str | None]
    metadata: Mapping[str, Any]
    groups: Sequence[str | None] | None = None
    kind: Kind = "class"

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} x {self.embedding.shape[1]}, {len({*self.labels} - {None})} labels)"

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Path -> row; of a path that is in the table twice, the last one."""
        return {path: row for row, path in enumerate(self.paths)}

    def select(self, rows: Sequence[int]) -> "Embeddings":
        """Return the given rows, in that order."""
        embedding = self.embedding[torch.as_tensor(rows, dtype=torch.long)]
        paths, labels, splits, groups = take(self, rows)
        return Embeddings(embedding, paths, labels, splits, self.metadata, groups, self.kind)

    def save(self, path: str | Path) -> None:
        """Write one Parquet file atomically; a suffix other than ``.parquet`` or ``.pq`` is refused by a UserError."""
        check_suffix(path)
        self.write(path)

    def write(self, path: str | Path) -> None:
        """Write one Parquet file atomically, whatever its name is."""
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
        loaded = from_arrow(read(path), path)
        pa.default_memory_pool().release_unused()  # it keeps what the columns took
        return loaded

    def filter(
        self,
        keep: Callable[[str, str | None, str | None], bool] | Sequence[bool] | None = None,
        *,
        label: str | Collection[str | None] | None = None,
        split: str | Collection[str | None] | None = None,
    ) -> "Embeddings":
        """Return the rows that meet all conditions.

        Args:
            keep: a function of path, label and split; or a bool per row, also as an array.
            label: one class or several.
            split: one split or several.

        Raises:
            UserError: ``keep`` is a mask of another length.
        """
        chosen = range(len(self))
        if keep is not None and not callable(keep):
            if len(keep) != len(self):
                raise UserError(f"keep: {len(keep)} values for {len(self)} rows; give one per row")
            chosen = [row for row in chosen if keep[row]]  # type: ignore[assignment]
        elif callable(keep):
            chosen = [row for row in chosen if keep(self.paths[row], self.labels[row], self.splits[row])]  # type: ignore[assignment]
        labels, splits = ({each} if isinstance(each, str) else each for each in (label, split))
        rows = [row for row in chosen if labels is None or self.labels[row] in labels]
        return self.select([row for row in rows if splits is None or self.splits[row] in splits])

    def join(self, other: Any) -> "Embeddings":
        """Return the rows whose path is in another table, too, in their order, with its columns.

        Label, split and group are the other's, if it has these columns. Embeddings of the other are put beside these:
        ``(N, D1 + D2)``; their metadata are then under ``joined``.

        Args:
            other: embeddings, or a table of pandas, polars, Arrow, DuckDB or datasets with a column ``path``.

        Raises:
            UserError: ``other`` is not a table, has no ``path``, one twice, or none in common.
        """
        right = other if isinstance(other, Embeddings) else None
        table = to_arrow(right) if right else frames.to_arrow(other, "other")
        row_of = frames.row_of_path(table, "other")
        kept = self.select([row for row, path in enumerate(self.paths) if path in row_of])
        if not len(kept):
            raise UserError(f"other has none of the {len(self)} paths, such as {next(iter(self.paths), '')!r}")
        rows = [row_of[path] for path in kept.paths]
        columns: dict[str, Any] = {}
        for name, column in (("labels", "label"), ("splits", "split"), ("groups", GROUP)):
            if column in table.column_names:
                values = frames.texts(table, column, "other")
                columns[name] = [values[row] for row in rows]
        if "embedding" in table.column_names:
            theirs = torch.from_numpy(frames.matrix(table, "other"))[rows]
            columns["embedding"] = torch.cat([kept.embedding, theirs], 1)
            metadata = right.metadata if right else frames.metadata(table)
            columns["metadata"] = {"joined": [dict(self.metadata), dict(metadata)]}
        return replace(kept, **columns)

    @staticmethod
    def concat(tables: Iterable["Embeddings"]) -> "Embeddings":
        """Return the rows of several tables in path order, with the metadata that they share.

        Raises:
            UserError: there are none; they are of different extractors or widths; a path is in two of them.
        """
        parts = list(tables)
        if not parts:
            raise UserError("tables is empty; give at least one")
        for key, known in (("space", [part.metadata.get("space") for part in parts]),
                           ("width", [part.embedding.shape[1] for part in parts]),
                           ("targets", [part.kind for part in parts])):  # fmt: skip
            if len(set(known) - {None}) > 1:
                raise UserError(f"tables differ in their {key}; embed all images with one extractor in one way")
        paths = [path for part in parts for path in part.paths]
        if len(set(paths)) < len(paths):
            path = next(path for path, count in Counter(paths).items() if count > 1)
            raise UserError(f"tables have the path {path!r} twice; filter one of them")
        grouped = any(part.groups is not None for part in parts)
        whole = Embeddings(
            torch.cat([part.embedding for part in parts]),
            paths,
            [label for part in parts for label in part.labels],
            [split for part in parts for split in part.splits],
            frames.common_metadata(part.metadata for part in parts),
            [group for part in parts for group in part.groups or [None] * len(part)] if grouped else None,
            parts[0].kind,
        )
        return whole.select(sorted(range(len(paths)), key=paths.__getitem__))

    def to_arrow(self) -> pa.Table:
        """Return the columns path, label, split and embedding (fixed-size lists), with the metadata as JSON."""
        return to_arrow(self)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``; column ``embedding`` holds arrays, ``attrs`` the metadata.

        Raises:
            UserError: pandas is not installed.
        """
        return frames.to_pandas(to_arrow(self))

    def to_polars(self) -> Any:
        """Return a ``polars.DataFrame``; column ``embedding`` is an ``Array``. The metadata is left out.

        Raises:
            UserError: polars is not installed.
        """
        return frames.to_polars(to_arrow(self))

    def to_duckdb(self, connection: Any = None) -> Any:
        """Return a DuckDB relation; column ``embedding`` is a ``FLOAT[D]``. The metadata is left out.

        Args:
            connection: of DuckDB; by default its global one.

        Raises:
            UserError: DuckDB is not installed.
        """
        return frames.to_duckdb(to_arrow(self), connection)

    def to_datasets(self) -> Any:
        """Return a Hugging Face ``datasets.Dataset``.

        Raises:
            UserError: datasets is not installed.
        """
        return frames.to_datasets(to_arrow(self))

    def to_numpy(self) -> NDArray[np.float32]:
        """Return the embeddings as an array, float32 (N, D)."""
        values: NDArray[np.float32] = self.embedding.detach().to("cpu", torch.float32).numpy()
        return values

    @classmethod
    def from_numpy(
        cls,
        array: Any,
        paths: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        splits: Sequence[str | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Embeddings":
        """Make a table of numbers that were computed anywhere.

        Args:
            array: (N, D), also a tensor or nested lists.
            paths: N names; by default the numbers of the rows.
            labels: N class names.
            splits: N of ``train``, ``val``, ``test`` or None.
            metadata: what is known of the extractor.

        Raises:
            UserError: ``array`` is not (N, D), or the others are of another length.
        """
        return cls(*frames.rows_of_array(array, paths, labels, splits, metadata))

    @classmethod
    def from_frame(cls, table: Any, metadata: Mapping[str, Any] | None = None) -> "Embeddings":
        """Make a table of a table of pandas, polars, Arrow, DuckDB or Hugging Face datasets, or of columns by name.

        Args:
            table: with ``embedding``, N lists of D numbers, and perhaps ``path``, ``label``, ``split`` and ``group``.
            metadata: what is known of the extractor; by default what the table carries.

        Raises:
            UserError: a column is missing or of another type.
        """
        return cls(*frames.rows_of_frame(table, metadata))

    from_pandas = from_polars = from_arrow = from_duckdb = from_datasets = from_frame


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
    table, _ = label_columns.unpack(read(path, [*TEXTS, GROUP, label_columns.NUMBER]))
    metadata = metadata_of(table.schema, path)
    label_columns.check_texts(table, path)
    paths, labels, splits = (table[name].to_pylist() for name in TEXTS)
    return Facts(paths, labels, splits, metadata, values_of(table, GROUP))


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file or a directory of shards, whose ``broken`` in the metadata is merged.

    Raises:
        UserError: the file is missing or not readable, or the shards do not belong together.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; embed images to write it")
    try:
        if path.is_file():
            return read_table(path, columns, label_columns.LISTS)
        if not path.is_dir():
            raise UserError(f"{path} is neither a file nor a folder; give an embeddings file or folder of shards")
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise UserError(f"{path} is a folder without .parquet files; give an embeddings file or folder of shards")
        parts = [read_table(file, columns, label_columns.LISTS) for file in files]
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


def to_arrow(embeddings: Embeddings) -> pa.Table:
    """Return columns path, label, split, group (if any) and embedding; the metadata is JSON under ``transferkit``."""
    values = embeddings.embedding.detach().to("cpu", torch.float32).contiguous()
    width = values.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), width)
    columns = {
        "path": pa.array(embeddings.paths, pa.string()),
        **label_columns.pack(embeddings.labels, embeddings.kind),
        "split": pa.array(embeddings.splits, pa.string()),
    }
    if embeddings.groups is not None:
        columns[GROUP] = pa.array(embeddings.groups, pa.string())
    columns["embedding"] = column
    bare = pa.table(columns)
    metadata = {**embeddings.metadata, **label_columns.version_of(embeddings.kind)}
    return bare.cast(with_metadata(bare.schema, metadata))


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
    table, targets = label_columns.unpack(table)
    kind = table.schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise UserError(f"{path}: column embedding is {kind}, a fixed-size list of float32 was expected")
    if table["embedding"].null_count:
        raise UserError(f"{path}: {table['embedding'].null_count} rows have no embedding; write it again")
    label_columns.check_texts(table, path)
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["embedding"].chunks]
    flat = np.concatenate([np.empty(0, np.float32), *chunks])
    return Embeddings(
        embedding=torch.from_numpy(flat).reshape(-1, kind.list_size),
        paths=table["path"].to_pylist(),
        labels=table["label"].to_pylist(),
        splits=table["split"].to_pylist(),
        metadata=metadata,
        groups=values_of(table, GROUP),
        kind=targets,
    )
