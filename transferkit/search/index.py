"""The index directory: ``index.json``, ``embeddings.parquet`` and, for an approximate index, ``index.faiss``.

The embeddings are an embeddings table like any other, with four more columns: ``stamp``, what told the file from
others when it was embedded, its ``size`` and ``mtime_ns`` (all that earlier versions knew of it), and ``place``, the
number of its vector in ``index.faiss``.
"""

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

from transferkit.data.embeddings import Embeddings, to_arrow
from transferkit.data.fingerprint import size_and_time
from transferkit.data.image_table import ImageTable, table_class
from transferkit.embed import space_of
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import read_json, write_json
from transferkit.search import faiss_index
from transferkit.similarity import unit_rows

RECORD = "index.json"
TABLE = "embeddings.parquet"
FAISS = "index.faiss"
FORMAT = 1
GROUP_ROWS = 256  # a few rows are read without the rest: half a MB a group of 512-d embeddings


@dataclass(frozen=True)
class ImageIndex:
    """An index as it lies on disk; its embeddings are read when they are needed.

    Attributes:
        folder: the directory.
        record: content of ``index.json``: extractor, root of the images, kind of index.
        images: the indexed images, rows in path order.
        stamps: of each file when it was embedded, see :func:`transferkit.data.fingerprint.stamp`.
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
        """Embeddings as the extractor gave them, float32 (N, D); or those of some rows, in that order."""
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
        """All embeddings at unit length, float32 (N, D), kept once read."""
        return unit_rows(self.embedding())

    @cached_property
    def faiss(self) -> Any:
        """The approximate index, kept once read; only the file that ``index.json`` names by its SHA-256 is read.

        faiss trusts the files it reads. The hash finds a file that was damaged or exchanged; it is no signature:
        of a directory from somebody else only the Parquet and JSON are safe to read (exact search).
        """
        return faiss_index.read(self.folder / FAISS, self.record["faiss"]["sha256"])

    def source(self) -> tuple[str, str]:
        """Extractor and weights, by the names that open the extractor again.

        Raises:
            UserError: they were files, and have been moved or deleted.
        """
        recorded = self.record["extractor"]
        source, weights = str(recorded["source"]), str(recorded["weights"])
        for what, path, remedy in (
            ("extractor", source, "--extractor PLACE"),
            ("weights file", weights, f"--extractor {source} --weights PLACE"),
        ):
            if Path(path).is_absolute() and not Path(path).exists():
                raise UserError(
                    f"{self.folder} was made with the {what} {path}, which is no longer there; put it back, or name "
                    f"its new place: transferkit index IMAGES {remedy} --pooling {recorded['pooling']} "
                    f"--out {self.folder}"
                )
        return source, weights

    def check_extractor(self, extractor: Extractor) -> None:
        """Refuse an extractor that would give other embeddings than those indexed.

        Raises:
            UserError: naming what differs.
        """
        recorded = self.record["extractor"]
        for what in EmbeddingSpace.from_metadata(recorded).differences(space_of(extractor)):
            raise UserError(
                f"{self.folder} was built with {recorded['source']} ({recorded['pooling']}); {extractor.name} "
                f"({extractor.pooling}) has other {'weights' if what == 'weights_sha256' else what}; use the former, "
                "or index anew with --overwrite"
            )


def identity(extractor: Extractor) -> dict[str, Any]:
    """The space of an extractor's embeddings, and their width, in plain types."""
    return {**space_of(extractor).to_metadata(), "embed_dim": extractor.embed_dim}


def open_index(folder: str | Path) -> ImageIndex:
    """Open an index directory; embeddings and ``index.faiss`` are left for later.

    Raises:
        UserError: no index, an incomplete or damaged one, of a newer format, or without images.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} is no index; make one with: transferkit index IMAGES --out {folder}")
    again = f"make it again with transferkit index IMAGES --out {folder} --overwrite"
    try:
        record = read_json(folder / RECORD)
        if record["format"] != FORMAT:
            raise UserError(f"{folder} has format {record['format']}, this version reads {FORMAT}; update transferkit")
        there = pq.read_schema(folder / TABLE).names
        stamped = ["stamp"] if "stamp" in there else ["size", "mtime_ns"]  # all that earlier versions kept
        columns = ["path", "label", "split", "place", *stamped]
        table = pq.read_table(folder / TABLE, columns=columns).to_pydict()
        paths, labels, splits = (tuple(table[name]) for name in ("path", "label", "split"))
        images = table_class(record["images"])(record["images"], paths, labels, splits, source=record["images"])
        width = pq.read_schema(folder / TABLE).field("embedding").type.list_size
        if len(images) != record["rows"] or width != record["extractor"]["embed_dim"]:
            raise ValueError(f"{TABLE} is {len(images)} x {width}, {RECORD} says otherwise")
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
) -> None:
    """Write the directory, in one step in the place of the one before; ``record`` gains the hash of ``index.faiss``.

    Raises:
        UserError: the place cannot be written.
    """
    table = to_arrow(embeddings).append_column("stamp", pa.array(stamps, pa.string()))
    sizes, times = zip(*map(size_and_time, stamps), strict=True)
    for name, values in (("size", sizes), ("mtime_ns", times), ("place", places.tolist())):
        table = table.append_column(name, pa.array(values, pa.int64()))
    content = dict(record)
    with atomic_path(folder, folder=True) as temporary:
        texts = ["path", "label", "split"]  # floats gain nothing from either
        options = {"use_dictionary": texts, "compression": "none", "row_group_size": GROUP_ROWS}
        pq.write_table(table, temporary / TABLE, **options)
        if ann_index is not None:
            content["faiss"] = {
                **record["faiss"],
                "sha256": faiss_index.write(ann_index, temporary / FAISS),
            }
        write_json(temporary / RECORD, content)
