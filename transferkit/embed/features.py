"""Cached embeddings of a table: each image is computed once per space.

**What is reused.** An image that is cached in the same space, with the same path and stamp, is not computed again, even
if it was part of another table: ``fit``, ``test``, ``probe`` and ``embed`` share their features. The last bits of an
embedding depend on the batch it was computed in. With an empty cache, a command always gives the same bits for any
number of workers and processes, since batches are cut from the sorted paths at fixed places. With a cache that other
commands have filled, rows may differ from those by rounding; ``reused`` in the metadata counts the rows from other
tables. To reproduce a result to the bit, clear the cache first. Random views depend on the row and are reused only as
a whole.
"""

import json
import logging
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.fingerprint import fingerprint
from transferkit.data.image_table import ImageTable
from transferkit.embed import feature_cache
from transferkit.embed.embedding_space import EmbeddingSpace, describe, space_of
from transferkit.embed.feature_cache import Damaged, Known, look_up, take
from transferkit.embed.shards import discard_parts, write_embeddings
from transferkit.embed.stream import View, make_table, usual_batch_size
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.images.augmentation import Augmentation, view_seed
from transferkit.runtime.files import discard, unwritable
from transferkit.runtime.ranks import Ranks, joined

if TYPE_CHECKING:  # imports Lightning, which takes seconds
    from transferkit.data.datamodule import ImageDataModule

log = logging.getLogger(__name__)


def feature_key(metadata: Mapping[str, Any]) -> str:
    """Return the SHA-256 over what the values of a table depend on: its space, the random view, and its images."""
    space = EmbeddingSpace.from_metadata(metadata).sha256
    return sha256(json.dumps([space, metadata["augmentation"], metadata["data_fingerprint"]]).encode()).hexdigest()


class Plan(NamedTuple):
    """What to compute, as found by the first process; small enough to be sent to the others."""

    metadata: dict[str, Any]
    missing: list[int]
    stamps: list[str]  # of the missing rows
    out: Path
    token: Path


def cached_features(
    extractor: Extractor,
    table: ImageTable,
    view: View | None = None,
    ranks: Ranks | None = None,
    forward: Forward | None = None,
) -> Embeddings:
    """Return the embeddings of a table, from the cache, or computed now and added to it.

    Labels and splits are those of the table, not of the time when the features were computed. Unreadable images are
    left out and named in the metadata under ``broken``.

    Only the first process reads its cache. If the others share the cache folder, they compute a share of what is
    missing; otherwise the first computes all and they wait.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        view: a random view of the images instead of their preprocessing.
        ranks: the processes that call this together, see :func:`~transferkit.runtime.ranks.joined`; by default this
            one alone.
        forward: what is kept of each image, one vector; by default the extractor's embedding in float32.

    Returns:
        Embeddings float32 (N, D) in path order, without unreadable images.

    Raises:
        UserError: the cache cannot be written; ``TRANSFERKIT_CACHE_LIMIT`` is not a size.
    """
    ranks = ranks or Ranks()
    width = math.prod(forward.shape) if forward else extractor.embed_dim
    known, values = Known({}, {}, [], 0), torch.empty(0, width)

    def prepare() -> Plan:
        nonlocal known, values
        feature_cache.cache_limit()  # before hours of work
        stamps = table.stamps()
        metadata = describe(extractor, table, view.name if view else "none", forward, stamps=stamps)
        folder = feature_cache.entries_folder(EmbeddingSpace.from_metadata(metadata), metadata["augmentation"])
        known, values = recall(folder, table.paths, stamps, width, exact=view is not None)
        missing = list(range(len(table))) if view and known.missing else list(known.missing)
        own = [stamps[row] for row in missing]
        out = folder / f"{fingerprint([table.paths[row] for row in missing], own)}.parquet"
        token = folder / f".{uuid.uuid4().hex}.token"
        if missing and ranks.world_size > 1:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                token.touch()
            except OSError as error:
                raise unwritable(token, error) from error
        return Plan(metadata, missing, own, out, token)

    plan = ranks.from_first(prepare)
    if plan.missing:
        compute(extractor, table, plan, view, ranks, forward)

    def gather() -> tuple[list[int], dict[str, str], int]:
        nonlocal values
        places, broken = dict(known.places), dict(known.broken)
        row_of = {path: row for row, path in enumerate(places)}
        if plan.missing:
            new = Embeddings.load(plan.out)
            row_of |= {path: len(values) + row for row, path in enumerate(new.paths)}
            values = torch.cat([values, new.embedding]) if len(values) else new.embedding
            broken |= new.metadata["broken"]
            feature_cache.touch(plan.out)
            feature_cache.trim()
        rows = [row for row, path in enumerate(table.paths) if path in row_of]
        order = [row_of[table.paths[row]] for row in rows]
        values = values if order == list(range(len(values))) else values[torch.tensor(order, dtype=torch.long)]
        return rows, {path: broken[path] for path in sorted(broken)}, known.foreign

    rows, broken, foreign = ranks.from_first(gather)
    values = ranks.tensor_from_first(values, (len(rows), width))
    metadata = plan.metadata | {"batch_size": usual_batch_size(extractor.device)}
    return make_table(table, rows, values, with_origin(metadata, broken, foreign))


def with_origin(metadata: Mapping[str, Any], broken: Mapping[str, str], foreign: int) -> dict[str, Any]:
    """Return the metadata with unreadable images, and with how many rows were computed among other images."""
    return {**metadata, "broken": dict(broken), **({"reused": foreign} if foreign else {})}


def recall(
    folder: Path, paths: Sequence[str], stamps: Sequence[str], width: int, exact: bool = False
) -> tuple[Known, torch.Tensor]:
    """Return what the cache has of images, and their embeddings (N, width) in the order of ``places``."""
    while True:
        known = look_up(folder, paths, stamps, exact)
        try:
            values = take(list(known.places.values()), width)
        except Damaged as error:  # it is removed, so the loop ends
            log.warning("cached features were damaged and are computed again: %s", error)
            continue
        for file in {place.file for place in known.places.values()}:
            discard_parts(file)  # a process that was killed at the end may have left them
        return known, values


def compute(
    extractor: Extractor, table: ImageTable, plan: Plan, view: View | None, ranks: Ranks, forward: Forward | None
) -> None:
    """Embed the missing images into a new entry of the first process's cache."""
    part = feature_cache.stamped(table, plan.missing, plan.stamps)
    named = {"images": table.root, "data_fingerprint": fingerprint(part.paths, plan.stamps)}
    metadata = {**plan.metadata, **named}
    shared = ranks.world_size == 1 or ranks.all_true(is_shared(plan.token))
    if ranks.rank == 0:
        discard(plan.token)
    if shared:
        write_embeddings(extractor, part, plan.out, metadata, forward, view=view, ranks=ranks)
        return
    if ranks.rank == 0:
        log.warning(
            "the other processes cannot write the cache folder %s, so the first one embeds all images; set "
            "TRANSFERKIT_CACHE to a folder that all machines share",
            plan.out.parent,
        )
    ranks.from_first(lambda: write_embeddings(extractor, part, plan.out, metadata, forward, view=view))


def is_shared(token: Path) -> bool:
    """Return whether this process sees a file of the first one and may write beside it."""
    try:
        return token.is_file() and os.access(token.parent, os.W_OK | os.X_OK)
    except OSError:  # no right to read the folder
        return False


def fill_features(
    extractor: Extractor,
    data: "ImageDataModule",
    splits: Sequence[str] = ("train", "val"),
    forward: Forward | None = None,
) -> None:
    """Give a DataModule the embeddings of some splits, so that images are decoded once.

    With augmentation, ``data.views`` random views of the training images are embedded. If the Trainer has started
    several processes, all of them call this.

    Args:
        extractor: the extractor, on the device to use.
        data: the DataModule, with its tables set up.
        splits: names of the splits, such as ``("test",)`` before testing a frozen backbone.
        forward: what is kept of each image instead, for later stages; evaluations then have the batches of training.

    Raises:
        UserError: images cannot be read and the data does not skip them; the first are named.
    """
    augmented = data.augmentation != "none" and "train" in splits
    plain = [name for name in splits if not (augmented and name == "train")]
    with joined() as ranks:
        table = data.tables[plain[0]] if len(plain) == 1 else data.union(plain)
        found = cached_features(extractor, table, ranks=ranks, forward=forward)
        parts = {name: [found] for name in plain}
        if augmented:
            transform, train = Augmentation(data.augmentation, extractor.preprocessing), data.tables["train"]
            views = [make_view(transform, data.seed, number) for number in range(data.views)]
            parts["train"] = [cached_features(extractor, train, view, ranks) for view in views]
        broken = {path: why for tables in parts.values() for path, why in tables[0].metadata["broken"].items()}
        ranks.run_on_all(lambda: data.check_broken(broken, splits))
    features = dict(data.features)
    for name, tables in parts.items():
        rows = torch.tensor([tables[0].row_of[path] for path in data.tables[name].paths])
        features[name] = [one.embedding[rows] for one in tables]
    data.configure(features=features, feature_batch=data.batch_size if forward else None)


def make_view(transform: Augmentation, seed: int, number: int) -> View:
    """Return the ``number``-th random view of every image."""
    name = f"{transform.preset}, seed {seed}, view {number}"
    return View(name, lambda image, row: transform(image, view_seed(seed, number, row)))


def knows_some(extractor: Extractor, table: ImageTable) -> bool:
    """Return whether the cache already has some of a table, so that embedding it takes less time."""
    stamps, folder = table.stamps(), feature_cache.entries_folder(space_of(extractor))
    begun = f".{fingerprint(table.paths, stamps)}.parquet.*.parts"  # left by an interrupted run
    return bool(look_up(folder, table.paths, stamps).places) or any(folder.glob(begun))


def forget_features(extractor: Extractor, table: ImageTable) -> None:
    """Remove the tables from the cache that hold only these images."""
    feature_cache.forget(feature_cache.entries_folder(space_of(extractor)), table.paths, table.stamps())
