"""The index directory: ``index.json``, ``embeddings.parquet`` and, for an approximate index, ``index.faiss``.

If its embeddings were computed in int8, ``int8.onnx`` is the network that computes those of queries.

The embeddings are an embeddings table with four more columns: ``stamp``, which identifies the content of the file when
it was embedded, its ``size`` and ``mtime_ns`` (the only columns that earlier versions wrote), and ``place``, the number
of its vector in ``index.faiss``.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from transferkit.backbones.base import WITH_WORDS
from transferkit.data.columns import GROUP
from transferkit.data.embeddings import Embeddings, to_arrow
from transferkit.data.fingerprint import size_and_time
from transferkit.data.image_table import ImageTable, table_class
from transferkit.embed import space_of
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.quantization import Quantization
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import read_json, write_json
from transferkit.search import faiss_index
from transferkit.similarity import unit_rows

RECORD = "index.json"
TABLE = "embeddings.parquet"
FAISS = "index.faiss"
INT8 = "int8.onnx"
FORMAT = 1
GROUP_ROWS = 256  # so that single rows can be read: half a MB per group of 512-d embeddings


@dataclass(frozen=True)
class ImageIndex:
    """An index on disk; its embeddings are read when they are needed.

    Attributes:
        folder: the directory.
        record: content of ``index.json``: extractor, root of the images, kind of index.
        images: the indexed images, rows in path order.
        stamps: stamp of each file when it was embedded, see :func:`transferkit.data.fingerprint.stamp`.
        places: int64 (N,), number of each row's vector in ``index.faiss``.
    """

    folder: Path
    record: Mapping[str, Any]
    images: ImageTable
    stamps: Sequence[str]
    places: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kind(self) -> str:
        """``exact`` or a factory string of faiss."""
        return str(self.record["index"])

    def embedding(self, rows: Tensor | None = None) -> Tensor:
        """Return the embeddings of all rows, or of some in the given order: float32 (N, D), not normalized."""
        path = self.folder / TABLE
        if rows is None:
            return Embeddings.load(path).embedding
        groups, place_of_group = torch.unique(rows // GROUP_ROWS, return_inverse=True)
        with pq.ParquetFile(path) as file:
            column = file.read_row_groups(groups.tolist(), columns=["embedding"])["embedding"]
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        values = torch.from_numpy(np.concatenate(chunks)).reshape(-1, self.record["extractor"]["embed_dim"])
        return values[place_of_group * GROUP_ROWS + rows % GROUP_ROWS]  # only the last group of a file is short

    @cached_property
    def unit(self) -> Tensor:
        """All embeddings at unit length, float32 (N, D), read once."""
        return unit_rows(self.embedding())

    @cached_property
    def faiss(self) -> Any:
        """The approximate index, read once, and only if the SHA-256 of its file is that in ``index.json``.

        faiss trusts the files it reads. The hash detects a damaged or exchanged file, but it is not a signature: of a
        directory that you do not trust, only the Parquet and JSON files are safe to read (exact search).
        """
        return faiss_index.read(self.folder / FAISS, self.record["faiss"]["sha256"])

    @property
    def quantization(self) -> Quantization | None:
        """The network in int8 that the images were embedded with; None in another precision."""
        identity = self.record["extractor"].get("quantization")
        return Quantization(file=self.folder / INT8, identity=identity) if identity else None

    def source(self) -> tuple[str, str]:
        """Return the names of extractor and weights, which open the extractor again.

        Raises:
            UserError: a file of them has been moved or deleted.
        """
        recorded = self.record["extractor"]
        source, weights = str(recorded["source"]), str(recorded["weights"])
        for what, path, named in (
            ("extractor", source, '`extractor="NEW_PATH"`'),
            ("weights file", weights, f'`extractor="{source}"`, `weights="NEW_PATH"`'),
        ):
            if Path(path).is_absolute() and not Path(path).exists():
                raise UserError(
                    f"{self.folder} was made with the {what} {path}, which no longer exists; restore it, or index the "
                    f'images again with {named}, `pooling="{recorded["pooling"]}"`, `out="{self.folder}"`'
                )
        return source, weights

    def check_words(self) -> None:
        """Raise if the index is known to hold no embeddings that texts can be compared with.

        Raises:
            UserError: it was built with a model of images alone, or with another pooling than the shared space.
        """
        recorded = self.record["extractor"]
        if self.record.get("words") is False:
            raise UserError(
                f"{self.folder} cannot be asked by words: {recorded['source']} with pooling {recorded['pooling']} has "
                "no texts in its space; index the images again with a model of images and texts, such as "
                f'`extractor="{WITH_WORDS}"`, `pooling="projection"`'
            )

    def check_extractor(self, extractor: Extractor) -> None:
        """Raise if an extractor's embeddings cannot be compared with those indexed.

        Raises:
            UserError: the spaces differ; the message names the difference.
        """
        recorded = self.record["extractor"]
        for what in EmbeddingSpace.from_metadata(recorded).differences(space_of(extractor)):
            raise UserError(
                f"{self.folder} was built with {recorded['source']} ({recorded['pooling']}); {extractor.name} "
                f"({extractor.pooling}) has other {'weights' if what == 'weights_sha256' else what}; use the former, "
                "or index the images again with `overwrite=True`"
            )


def identity(extractor: Extractor) -> dict[str, Any]:
    """Return the space of an extractor's embeddings and their width, in plain types."""
    return {**space_of(extractor).to_metadata(), "embed_dim": extractor.embed_dim}


def open_index(folder: str | Path) -> ImageIndex:
    """Open an index directory; embeddings and ``index.faiss`` are read when they are needed.

    Raises:
        UserError: the directory is not an index, or is incomplete, damaged, of a newer format, or without images.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise UserError(f'{folder} is not an index; index images with `out="{folder}"` to make one')
    again = "index the images again with `overwrite=True`"
    try:
        record = read_json(folder / RECORD)
        if record["format"] != FORMAT:
            raise UserError(f"{folder} has format {record['format']}, this version reads {FORMAT}; update transferkit")
        there = pq.read_schema(folder / TABLE).names
        stamped = ["stamp"] if "stamp" in there else ["size", "mtime_ns"]  # what earlier versions wrote
        grouped = [GROUP] if GROUP in there else []
        columns = ["path", "label", "split", "place", *grouped, *stamped]
        table = pq.read_table(folder / TABLE, columns=columns).to_pydict()
        paths, labels, splits = (tuple(table[name]) for name in ("path", "label", "split"))
        groups = tuple(table[GROUP]) if grouped else None
        kind = table_class(record["images"])
        images = kind(record["images"], paths, labels, splits, source=record["images"], groups=groups)
        width = pq.read_schema(folder / TABLE).field("embedding").type.list_size
        if len(images) != record["rows"] or width != record["extractor"]["embed_dim"]:
            raise ValueError(f"{TABLE} is {len(images)} x {width}, unlike {RECORD}")
        if record["index"] != "exact" and not record["faiss"]["sha256"]:
            raise ValueError(f"no hash of {FAISS}")
        stamps = [" ".join(map(str, parts)) for parts in zip(*(table[name] for name in stamped), strict=True)]
        index = ImageIndex(folder, record, images, stamps, torch.tensor(table["place"], dtype=torch.long))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is a damaged index ({type(error).__name__}: {reason}); {again}") from error
    if not len(index):
        raise UserError(f"{folder} holds no images; {again}")
    return index


def write_index(
    folder: Path,
    record: Mapping[str, Any],
    embeddings: Embeddings,
    stamps: Sequence[str],
    places: Tensor,
    ann_index: Any = None,
    quantized: Quantization | None = None,
) -> None:
    """Write the directory and replace an earlier one in a single step; the hash of ``index.faiss`` is recorded.

    Args:
        folder: the directory.
        record: content of ``index.json``.
        embeddings: float32 (N, D) with paths, labels and splits.
        stamps: stamp of each file.
        places: int64 (N,), number of each row's vector in the approximate index.
        ann_index: faiss's index, or ``None`` for exact search.
        quantized: the network in int8, if the embeddings are by one.

    Raises:
        UserError: the directory cannot be written.
    """
    table = to_arrow(embeddings).append_column("stamp", pa.array(stamps, pa.string()))
    sizes, times = zip(*map(size_and_time, stamps), strict=True)
    for name, values in (("size", sizes), ("mtime_ns", times), ("place", places.tolist())):
        table = table.append_column(name, pa.array(values, pa.int64()))
    content = dict(record)
    with atomic_path(folder, folder=True) as temporary:
        texts = ["path", "label", "split"]  # neither makes floats smaller
        options = {"use_dictionary": texts, "compression": "none", "row_group_size": GROUP_ROWS}
        pq.write_table(table, temporary / TABLE, **options)
        if quantized and quantized.file:
            shutil.copyfile(quantized.file, temporary / INT8)
        if ann_index is not None:
            content["faiss"] = {
                **record["faiss"],
                "sha256": faiss_index.write(ann_index, temporary / FAISS),
            }
        write_json(temporary / RECORD, content)
