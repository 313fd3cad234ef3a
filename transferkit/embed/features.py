"""The feature cache: an extractor's embeddings of a table, computed once, kept under all that they depend on."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from transferkit.data.augmentation import Augmentation, view_seed
from transferkit.data.sources import ImageTable
from transferkit.embed.shards import discard_parts, write_embeddings
from transferkit.embed.table import View, describe
from transferkit.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.files import cache_dir

if TYPE_CHECKING:  # embedding does without Lightning, which takes seconds to import
    from transferkit.data.datamodule import ImageDataModule

KEY_PARTS = (
    "weights_sha256", "preprocessing", "augmentation", "pooling", "layer", "features", "normalize", "dtype",
    "data_fingerprint",
)  # fmt: skip


def feature_key(metadata: Mapping[str, Any]) -> str:
    """SHA-256 over weights, preprocessing, what is kept, dtype and data: the name of a table in the cache."""
    return sha256(json.dumps([metadata[part] for part in KEY_PARTS], sort_keys=True).encode()).hexdigest()


def cached_features(
    extractor: Extractor,
    table: ImageTable,
    view: View | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> Embeddings:
    """Embeddings of a table, from the cache or computed now and kept there.

    Labels and splits are the table's own, whatever they were when the features were computed.
    Unreadable images are left out and named in the metadata under ``broken``.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        view: a random view of the images instead of their preprocessing.
        rank: number of this process.
        world_size: how many processes share the work.
        barrier: waits for all of them.
    """
    metadata = describe(extractor, table, view.name if view else "none")
    path = cache_dir() / "features" / f"{feature_key(metadata)}.parquet"
    features = read_cached(path)
    barrier()  # every process looks before one of them writes
    if features is None:

        def agree(done: bool) -> bool:
            barrier()
            return done

        write_embeddings(extractor, table, path, metadata, view=view, rank=rank, world_size=world_size, agree=agree)
        features = Embeddings.load(path)
    else:  # a process that was killed as it finished may have left them
        discard_parts(path)
    row_of = {name: row for row, name in enumerate(table.paths)}
    rows = [row_of[name] for name in features.paths]
    return Embeddings(
        embedding=features.embedding,
        paths=features.paths,
        labels=[table.labels[row] for row in rows],
        splits=[table.splits[row] for row in rows],
        metadata=features.metadata,
    )


def fill_features(
    extractor: Extractor,
    data: "ImageDataModule",
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> None:
    """Give a DataModule the embeddings of its training and validation images; they are decoded once.

    With augmentation, ``data.views`` random views of the training images are embedded.

    Raises:
        UserError: unreadable images, all of them named, unless the data says to skip them.
    """

    def features(table: ImageTable, view: View | None = None) -> Embeddings:
        return cached_features(extractor, table, view, rank, world_size, barrier)

    augmented = data.augmentation != "none"
    plain = ("val",) if augmented else ("train", "val")
    found = features(data.union(plain))
    parts = {name: [found] for name in plain}
    if augmented:
        transform = Augmentation(data.augmentation, extractor.preprocessing)
        train = data.tables["train"]
        parts["train"] = [features(train, make_view(transform, data.seed, number)) for number in range(data.views)]
    broken = {path: why for views in parts.values() for path, why in views[0].metadata["broken"].items()}
    data.check_broken(broken)
    for name, views in parts.items():
        wanted = data.tables[name].paths
        row_of = {path: row for row, path in enumerate(views[0].paths)}
        rows = torch.tensor([row_of[path] for path in wanted])
        data.features[name] = [view.embedding[rows] for view in views]


def make_view(transform: Augmentation, seed: int, number: int) -> View:
    """The ``number``-th random view of every image."""
    name = f"{transform.preset}, seed {seed}, view {number}"
    return View(name, lambda image, row: transform(image, view_seed(seed, number, row)))


def read_cached(path: Path) -> Embeddings | None:
    """A table of the cache, or None if it is not there or damaged."""
    try:
        return Embeddings.load(path)
    except UserError:
        return None
