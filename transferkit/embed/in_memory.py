"""A table of images to a table of embeddings, in memory."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch

from transferkit.data.columns import take
from transferkit.data.embeddings import Embeddings
from transferkit.data.fingerprint import fingerprint
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.integrity import raise_broken, remember
from transferkit.embed.embedding_space import EmbeddingSpace, architecture_of
from transferkit.embed.stream import Batch, stream, stream_batches
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.images.error import Fault
from transferkit.runtime.progress import progress_bar
from transferkit.runtime.versions import versions


class View(NamedTuple):
    """One random view of every image, decided by its name and the row: ``transform(image, row)``."""

    name: str
    transform: Callable[[torch.Tensor, int], torch.Tensor]


def embed(
    images: str | Path | ImageTable,
    extractor: Extractor,
    batch_size: int | None = None,
    on_error: str = "fail",
    forward: Forward | None = None,
) -> Embeddings:
    """Embed a folder, manifest or file into a table in memory.

    Args:
        images: what :func:`~transferkit.data.image_table.open_images` opens, or its table.
        extractor: the extractor, on the device to use.
        batch_size: images a forward pass; see :func:`usual_batch_size`.
        on_error: ``fail`` names every unreadable image after the pass, ``skip`` leaves them out.
        forward: what is kept of each image; by default the extractor's embedding in float32.

    Raises:
        UserError: no images, or unreadable ones with ``fail``.
    """
    table = images if isinstance(images, ImageTable) else open_images(images)
    forward = forward or extractor.forward()
    batch_size = batch_size or usual_batch_size(extractor.device)
    broken: dict[str, str] = {}
    rows: list[int] = []
    parts = []
    with closing(run(extractor, table, batch_ranges(len(table), batch_size), forward)) as batches:
        for batch in batches:
            rows += batch.rows
            parts.append(batch.embedding)
            broken |= {table.paths[row]: str(fault) for row, fault in batch.broken.items()}
    if broken and on_error == "fail":
        raise_broken(broken, table.source, 'leave out with on_error="skip"')
    if not rows:
        raise UserError(f"none of the {len(table)} images can be read; see transferkit scan {table.source}")
    metadata = describe(extractor, table, forward=forward) | {"batch_size": batch_size, "broken": broken}
    return make_table(table, rows, torch.cat([part for part in parts if len(part)]), metadata)


def space_of(extractor: Extractor, forward: Forward | None = None, precision: str = "32") -> EmbeddingSpace:
    """The space that an extractor's embeddings lie in.

    Args:
        extractor: the extractor, on the device to use.
        forward: what is kept of each image; by default the extractor's embedding.
        precision: where there is no ``forward``: what computes it, in the words of Lightning's Trainer.
    """
    pooled: dict[str, Any] = {"pooling": extractor.pooling, "layer": None, "features": "pooled", "normalize": False}
    kept = forward.describe() if forward else {**pooled, "dtype": dtype_of(precision)}
    return EmbeddingSpace(
        weights_sha256=extractor.weights_sha256(),
        architecture=architecture_of(extractor.spec()),
        preprocessing=extractor.preprocessing.to_dict(),
        pooling=kept["pooling"],
        layer=kept["layer"],
        features=kept["features"],
        normalize=kept["normalize"],
        precision=forward.precision if forward else "32" if precision.startswith("32") else precision,
        dtype=kept["dtype"],
        engine="torch",
        device=extractor.device.type,
    )


def dtype_of(precision: str) -> str:
    """The dtype that a precision of Lightning's Trainer computes in: ``bf16-mixed`` in bfloat16."""
    names = {"bf16": "bfloat16", "16": "float16", "32": "float32", "64": "float64"}
    return names.get(precision.split("-")[0], precision)


def describe(
    extractor: Extractor,
    table: ImageTable,
    augmentation: str = "none",
    forward: Forward | None = None,
    precision: str = "32",
    stamps: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Metadata of the embeddings that an extractor gives for a table: all that their values depend on.

    Args:
        extractor: the extractor.
        table: images in path order.
        augmentation: name of the random view, if it is one.
        forward: what is kept of each image; by default the extractor's embedding in float32.
        precision: see :func:`space_of`.
        stamps: of the images, where they are known already.
    """
    space = space_of(extractor, forward, precision)
    shape = list(forward.shape) if forward else [extractor.embed_dim]
    return {
        "extractor": extractor.name,
        **space.to_metadata(),
        "space": space.sha256,
        "embed_dim": math.prod(shape),
        "shape": shape,
        "augmentation": augmentation,
        "versions": versions(),
        "data_fingerprint": table.fingerprint() if stamps is None else fingerprint(table.paths, stamps),
    }


def run(
    extractor: Extractor,
    table: ImageTable,
    batches: list[range],
    forward: Forward,
    view: View | None = None,
    workers: int | None = None,
    show: bool = True,
) -> Generator[Batch, None, None]:
    """Stream the batches of a table through an extractor; remember what could be decoded.

    Args:
        extractor: the extractor.
        table: images in path order.
        batches: rows of each batch.
        forward: the extractor's forward pass.
        view: a random view of the images instead of their preprocessing.
        workers: threads; by default one a core.
        show: whether under a progress bar.
    """
    one_at_a_time = Lock()  # augmentation draws from the process's generator

    def read(row: int) -> torch.Tensor:
        image = table.read(row)
        if view is None:
            return extractor.preprocessing.resize_crop(image, exact=forward.precision == "32")
        with one_at_a_time:
            return view.transform(image, row)

    source = stream_batches if forward.device.type == "cpu" else stream
    total = sum(map(len, batches))
    bar = progress_bar(f"embedding with {extractor.name}", total) if show else nullcontext(lambda steps: None)
    decoded: dict[str, Fault | None] = {}
    try:
        with bar as advance, closing(source(batches, read, forward, workers)) as results:
            for batch in results:
                decoded |= {table.paths[row]: None for row in batch.rows}
                decoded |= {table.paths[row]: fault for row, fault in batch.broken.items()}
                advance(len(batch.rows) + len(batch.broken))
                yield batch
    finally:  # also where no more than the wanted batches are taken, or the user interrupts
        remember(table, decoded)


def usual_batch_size(device: torch.device) -> int:
    """Images a forward pass: 16 on a CPU, where each core takes batches of its own (few would leave cores idle at
    the end, and larger ones leave its cache), 128 on a GPU.
    """
    return 16 if device.type == "cpu" else 128


def batch_ranges(rows: int, batch_size: int) -> list[range]:
    """Rows cut into batches at fixed places."""
    return [range(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


def make_table(table: ImageTable, rows: list[int], embedding: torch.Tensor, metadata: Mapping[str, Any]) -> Embeddings:
    """Embeddings (N, *shape) of some rows of a table of images, flattened to (N, D)."""
    return Embeddings(embedding.flatten(1), *take(table, rows), metadata)
