"""An extractor's embeddings of a table, each image computed once and kept under all that its values depend on.

**What is reused.** An image that is cached in the same space, under the same path and with the same stamp, is not
computed again, whatever table it was part of: ``fit``, ``test``, ``probe`` and ``embed`` share their features. The
last bits of an embedding depend on the batch it was computed in. The same command on an empty cache always gives the
same bits, with any number of workers and processes, since batches are cut from the sorted paths at fixed places; on a
cache that other commands have filled, rows may differ from those by rounding. The metadata says how many rows came
from other tables, under ``reused``. To reproduce a result to the bit, clear the cache first (``transferkit cache
clear``). Random views depend on the row and are reused only as a whole.
"""

import json
import logging
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
from transferkit.images.augmentation import Augmentation, view_seed
from transferkit.runtime.files import discard, unwritable
from transferkit.runtime.ranks import Ranks, joined

if TYPE_CHECKING:  # embedding does without Lightning, which takes seconds to import
    from transferkit.data.datamodule import ImageDataModule

log = logging.getLogger(__name__)


def feature_key(metadata: Mapping[str, Any]) -> str:
    """SHA-256 over all that the values of a table depend on: its space, the random view, and its images."""
    space = EmbeddingSpace.from_metadata(metadata).sha256
    return sha256(json.dumps([space, metadata["augmentation"], metadata["data_fingerprint"]]).encode()).hexdigest()


class Plan(NamedTuple):
    """What is to be computed, as the first process has found it; small enough to be sent to the others."""

    metadata: dict[str, Any]
    missing: list[int]
    stamps: list[str]  # of the missing rows
    out: Path
    token: Path


def cached_features(
    extractor: Extractor, table: ImageTable, view: View | None = None, ranks: Ranks | None = None
) -> Embeddings:
    """Embeddings of a table, from the cache or computed now and kept there.

    Labels and splits are the table's own, whatever they were when the features were computed.
    Unreadable images are left out and named in the metadata under ``broken``.

    The first process looks into its cache, and what it finds counts for all. Where the others see its cache
    folder they compute a share of what is missing; else it computes all, and they wait.

    Args:
        extractor: the extractor, on the device to use.
        table: images in path order.
        view: a random view of the images instead of their preprocessing.
        ranks: the processes that all call this together, see :func:`~transferkit.runtime.ranks.joined`; by
            default this one alone.

    Raises:
        UserError: the cache cannot be written; ``TRANSFERKIT_CACHE_LIMIT`` is not a size.
    """
    ranks = ranks or Ranks()
    known, values = Known({}, {}, [], 0), torch.empty(0, extractor.embed_dim)

    def prepare() -> Plan:
        nonlocal known, values
        feature_cache.cache_limit()  # before hours of work
        stamps = table.stamps()
        metadata = describe(extractor, table, view.name if view else "none", stamps=stamps)
        folder = feature_cache.entries_folder(EmbeddingSpace.from_metadata(metadata), metadata["augmentation"])
        known, values = recall(folder, table.paths, stamps, extractor.embed_dim, exact=view is not None)
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
        compute(extractor, table, plan, view, ranks)

    def gather() -> tuple[list[int], dict[str, str], int]:
        nonlocal values
        places, broken = dict(known.places), dict(known.broken)
        row_of = {path: row for row, path in enumerate(places)}
        if plan.missing:
            new = Embeddings.load(plan.out)
            row_of |= {path: len(values) + row for row, path in enumerate(new.paths)}
            values = torch.cat([values, new.embedding])
            broken |= new.metadata["broken"]
            feature_cache.touch(plan.out)
            feature_cache.trim()
        rows = [row for row, path in enumerate(table.paths) if path in row_of]
        values = values[torch.tensor([row_of[table.paths[row]] for row in rows], dtype=torch.long)]
        return rows, {path: broken[path] for path in sorted(broken)}, known.foreign

    rows, broken, foreign = ranks.from_first(gather)
    values = ranks.tensor_from_first(values, (len(rows), extractor.embed_dim))
    metadata = plan.metadata | {"batch_size": usual_batch_size(extractor.device)}
    return make_table(table, rows, values, with_origin(metadata, broken, foreign))


def with_origin(metadata: Mapping[str, Any], broken: Mapping[str, str], foreign: int) -> dict[str, Any]:
    """Return the metadata with unreadable images, and with how many rows were computed among other images."""
    return {**metadata, "broken": dict(broken), **({"reused": foreign} if foreign else {})}


def recall(
    folder: Path, paths: Sequence[str], stamps: Sequence[str], width: int, exact: bool = False
) -> tuple[Known, torch.Tensor]:
    """What the cache knows of images, and the embeddings (N, width) of those it has, in the order of ``places``."""
    while True:
        known = look_up(folder, paths, stamps, exact)
        try:
            values = take(list(known.places.values()), width)
        except Damaged as error:  # it is gone now, so this comes to an end
            log.warning("cached features were damaged and are computed again: %s", error)
            continue
        for file in {place.file for place in known.places.values()}:
            discard_parts(file)  # a process that was killed as it finished may have left them
        return known, values


def compute(extractor: Extractor, table: ImageTable, plan: Plan, view: View | None, ranks: Ranks) -> None:
    """Embed what is missing into a new entry of the first process's cache."""
    part = feature_cache.stamped(table, plan.missing, plan.stamps)
    named = {"images": table.root, "data_fingerprint": fingerprint(part.paths, plan.stamps)}
    metadata = {**plan.metadata, **named}
    shared = ranks.world_size == 1 or ranks.all_true(is_shared(plan.token))
    if ranks.rank == 0:
        discard(plan.token)
    if shared:
        write_embeddings(extractor, part, plan.out, metadata, view=view, ranks=ranks)
        return
    if ranks.rank == 0:
        log.warning(
            "the other processes do not see the cache folder %s, so the first one embeds all images; set "
            "TRANSFERKIT_CACHE to a folder that all machines share",
            plan.out.parent,
        )
    ranks.from_first(lambda: write_embeddings(extractor, part, plan.out, metadata, view=view))


def is_shared(token: Path) -> bool:
    """Whether this process sees a file of the first one, and may write beside it."""
    try:
        return token.is_file() and os.access(token.parent, os.W_OK | os.X_OK)
    except OSError:  # no right to look
        return False


def fill_features(extractor: Extractor, data: "ImageDataModule", splits: Sequence[str] = ("train", "val")) -> None:
    """Give a DataModule the embeddings of images of some splits; they are decoded once.

    With augmentation, ``data.views`` random views of the training images are embedded. Where the Trainer has
    started several processes, all of them call this.

    Args:
        extractor: the extractor, on the device to use.
        data: with its tables set up.
        splits: for which; ``("test",)`` or ``("predict",)`` before these stages of a frozen backbone.

    Raises:
        UserError: unreadable images, all of them named, unless the data says to skip them.
    """
    augmented = data.augmentation != "none" and "train" in splits
    plain = [name for name in splits if not (augmented and name == "train")]
    with joined() as ranks:
        table = data.tables[plain[0]] if len(plain) == 1 else data.union(plain)
        found = cached_features(extractor, table, ranks=ranks)
        parts = {name: [found] for name in plain}
        if augmented:
            transform, train = Augmentation(data.augmentation, extractor.preprocessing), data.tables["train"]
            views = [make_view(transform, data.seed, number) for number in range(data.views)]
            parts["train"] = [cached_features(extractor, train, view, ranks) for view in views]
        broken = {path: why for tables in parts.values() for path, why in tables[0].metadata["broken"].items()}
        ranks.run_on_all(lambda: data.check_broken(broken))
    features = dict(data.features)
    for name, tables in parts.items():
        rows = torch.tensor([tables[0].row_of[path] for path in data.tables[name].paths])
        features[name] = [one.embedding[rows] for one in tables]
    data.configure(features=features)


def make_view(transform: Augmentation, seed: int, number: int) -> View:
    """The ``number``-th random view of every image."""
    name = f"{transform.preset}, seed {seed}, view {number}"
    return View(name, lambda image, row: transform(image, view_seed(seed, number, row)))


def knows_some(extractor: Extractor, table: ImageTable) -> bool:
    """Whether embedding a table would take less than its whole time, as the cache has some of it already."""
    stamps, folder = table.stamps(), feature_cache.entries_folder(space_of(extractor))
    begun = f".{fingerprint(table.paths, stamps)}.parquet.*.parts"  # of an interrupted run
    return bool(look_up(folder, table.paths, stamps).places) or any(folder.glob(begun))


def forget_features(extractor: Extractor, table: ImageTable) -> None:
    """Remove from the cache the tables that hold no other images than these."""
    feature_cache.forget(feature_cache.entries_folder(space_of(extractor)), table.paths, table.stamps())
