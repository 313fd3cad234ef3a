"""Embedding a table of images into a Parquet file: shards as it goes, merged at the end, resumable."""

import json
from collections.abc import Callable, Generator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from transferkit.data.decoding import raise_broken, remember
from transferkit.data.sources import ImageTable, open_images
from transferkit.embed.stream import Batch, stream
from transferkit.embeddings import KEY, Embeddings
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.files import atomic_path, discard
from transferkit.progress import progress_bar
from transferkit.versions import versions

SHARD_BATCHES = 16  # a killed run repeats at most this many batches


class View(NamedTuple):
    """One random view of every image, decided by its name and the row: ``transform(image, row)``."""

    name: str
    transform: Callable[[torch.Tensor, int], torch.Tensor]


def embed(
    images: str | Path | ImageTable, extractor: Extractor, batch_size: int = 32, on_error: str = "fail"
) -> Embeddings:
    """Embed a folder, manifest or file into a table in memory.

    Args:
        images: what :func:`~transferkit.data.sources.open_images` opens, or its table.
        extractor: the extractor, on the device to use.
        batch_size: images a forward pass.
        on_error: ``fail`` names every unreadable image after the pass, ``skip`` leaves them out.

    Raises:
        UserError: no images, or unreadable ones with ``fail``.
    """
    table = images if isinstance(images, ImageTable) else open_images(images)
    metadata = describe(extractor, table)
    broken: dict[str, str] = {}
    rows: list[int] = []
    parts = []
    for batch in run(extractor, table, batch_ranges(len(table), batch_size)):
        rows += batch.rows
        parts.append(batch.embedding)
        broken |= {table.paths[row]: reason for row, reason in batch.broken.items()}
    if broken and on_error == "fail":
        raise_broken(broken)
    if not rows:
        raise UserError(f"none of the {len(table)} images can be read; see transferkit scan {table.source}")
    return make_table(table, rows, torch.cat([part for part in parts if len(part)]), metadata | {"broken": broken})


def describe(extractor: Extractor, table: ImageTable, augmentation: str = "none") -> dict[str, Any]:
    """Metadata of the embeddings that an extractor gives for a table: all that their values depend on."""
    return {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256(),
        "preprocessing": extractor.preprocessing.to_dict(),
        "pooling": extractor.pooling,
        "embed_dim": extractor.embed_dim,
        "augmentation": augmentation,
        "dtype": "float32",
        "versions": versions(),
        "data_fingerprint": table.fingerprint(),
    }


def write_embeddings(
    extractor: Extractor,
    table: ImageTable,
    out: Path,
    metadata: Mapping[str, Any],
    batch_size: int = 32,
    view: View | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> None:
    """Embed a table into one Parquet file, its rows in path order; started again, it does only what is missing.

    Batches are cut from the sorted paths at fixed places and shards from the batches, and each process
    takes whole shards, so neither an interruption nor the number of processes changes a bit of the result.
    Unreadable images are left out and named in the metadata under ``broken``.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        out: the Parquet file; shards stand in ``.<name>.parts`` beside it until it is whole.
        metadata: what :func:`describe` says of them.
        batch_size: images a forward pass.
        view: a random view of the images instead of their preprocessing.
        rank: number of this process.
        world_size: how many processes share the work.
        barrier: waits for all of them.

    Raises:
        UserError: the place cannot be written.
    """
    batches = batch_ranges(len(table), batch_size)
    shards = [batches[i : i + SHARD_BATCHES] for i in range(0, len(batches), SHARD_BATCHES)]
    key = sha256(json.dumps([dict(metadata), batch_size], sort_keys=True).encode()).hexdigest()
    folder = out.with_name(f".{out.name}.{key[:16]}.parts")  # other inputs, other folder: never a stale shard
    files = [folder / f"{number:06d}.parquet" for number in range(len(shards))]
    mine = [number for number in range(rank, len(shards), world_size) if not files[number].is_file()]
    wanted = [rows for number in mine for rows in shards[number]]
    results = run(extractor, table, wanted, view)
    for number in mine:
        parts = [next(results) for _ in shards[number]]
        rows = [row for part in parts for row in part.rows]
        broken = {table.paths[row]: reason for part in parts for row, reason in part.broken.items()}
        kept = [part.embedding for part in parts if part.rows]
        values = torch.cat(kept) if kept else torch.empty(0, extractor.embed_dim)
        make_table(table, rows, values, {**metadata, "broken": broken}).save(files[number])
    results.close()
    barrier()
    if rank == 0:
        merge(files, out, metadata, len(table))
        discard(folder)
    barrier()


def run(
    extractor: Extractor, table: ImageTable, batches: list[range], view: View | None = None
) -> Generator[Batch, None, None]:
    """Stream the batches of a table through an extractor, under a progress bar; remember what could be decoded."""

    def read(row: int) -> torch.Tensor:
        image = table.read(row)
        return view.transform(image, row) if view else extractor.preprocessing.resize_crop(image)

    decoded: dict[str, str | None] = {}
    try:
        with progress_bar(f"embedding with {extractor.name}", sum(map(len, batches))) as advance:
            # augmentation draws from the process's generator: one thread
            for batch in stream(batches, read, extractor, workers=1 if view else None):
                decoded |= {table.paths[row]: None for row in batch.rows}
                decoded |= {table.paths[row]: reason for row, reason in batch.broken.items()}
                advance(len(batch.rows) + len(batch.broken))
                yield batch
    finally:  # also where no more than the wanted batches are taken, or the user interrupts
        remember(table, decoded)


def merge(files: list[Path], out: Path, metadata: Mapping[str, Any], expected: int) -> None:
    """Join shards in order into one file, one shard in memory at a time.

    Raises:
        UserError: a row is missing or there twice.
    """
    broken: dict[str, str] = {}
    for file in files:
        broken |= json.loads(pq.read_schema(file).metadata[KEY])["broken"]
    text = json.dumps(dict(metadata) | {"broken": broken}, sort_keys=True)
    schema = pq.read_schema(files[0]).with_metadata({KEY: text.encode()})
    last, count = "", 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for file in files:
            table = pq.read_table(file)
            paths = table["path"].to_pylist()
            if any(a >= b for a, b in zip([last, *paths], paths, strict=False)):
                raise UserError(f"{file} does not follow the shard before it; delete {file.parent} and start again")
            last, count = (paths or [last])[-1], count + len(paths)
            writer.write_table(table.replace_schema_metadata(schema.metadata))
        if count + len(broken) != expected:
            raise UserError(f"{count + len(broken)} of {expected} rows are in {file.parent}; delete it, start again")


def batch_ranges(rows: int, batch_size: int) -> list[range]:
    """Rows cut into batches at fixed places."""
    return [range(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


def make_table(table: ImageTable, rows: list[int], embedding: torch.Tensor, metadata: Mapping[str, Any]) -> Embeddings:
    """Embeddings of some rows of a table of images."""
    return Embeddings(
        embedding=embedding,
        paths=[table.paths[row] for row in rows],
        labels=[table.labels[row] for row in rows],
        splits=[table.splits[row] for row in rows],
        metadata=metadata,
    )
