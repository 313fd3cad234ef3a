"""Building or updating an index: only new and changed images are embedded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.data.columns import take
from transferkit.data.embeddings import Embeddings
from transferkit.data.fingerprint import MISSING, same
from transferkit.data.image_table import ImageTable
from transferkit.embed import cached_features, describe, forget_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.runtime.files import check_folder, check_place, sweep
from transferkit.runtime.versions import versions
from transferkit.search import faiss_index
from transferkit.search.index import RECORD, ImageIndex, identity, open_index, write_index
from transferkit.similarity import unit_rows, zero_rows

DEAD = 0.2  # an approximate index is rebuilt when this share of its vectors are of removed images,
GROWTH = 2  # or when it has this many times the images it was trained on


class Change(NamedTuple):
    """What changed: numbers of images, path -> reason for unreadable ones, and number of embeddings that are zero."""

    added: int
    removed: int
    refreshed: int
    kept: int
    broken: Mapping[str, str]
    zero_rows: int


def build_index(
    images: ImageTable,
    folder: str | Path,
    extractor: Extractor,
    source: Mapping[str, str],
    index: str | None = None,
    overwrite: bool = False,
) -> tuple[ImageIndex, Change]:
    """Index images, or update the index of the same images and extractor.

    An image has changed when the stamp of its file differs, see :func:`transferkit.data.fingerprint.stamp`.
    Unreadable images are left out and tried again the next time. The embeddings of a new index stay in the feature
    cache; those that are added to an existing index do not, since nothing else reads them.

    Args:
        images: the images.
        folder: the index directory.
        extractor: the extractor, on the device to use.
        source: ``source`` and ``weights`` that open the extractor again, recorded as given.
        index: ``exact``, ``auto`` (exact if faiss is not installed), or a factory string of faiss; ``None`` is the kind
            of the existing index, for a new one ``exact``.
        overwrite: replace an index of any images and extractor.

    Raises:
        UserError: ``folder`` holds something else, or an index of another extractor or other images; no image can be
            read; faiss is not installed or refuses the kind.
    """
    folder = Path(folder)
    check_folder(folder.absolute().parent)
    sweep(folder.absolute().parent)
    if index not in (None, "auto", "exact"):
        faiss_index.library()  # before hours of work
    old = open_old(folder, images, extractor, overwrite)
    if extractor.precision == "int8":
        extractor.forward()  # makes the network, which the index keeps for its queries
    if index not in (None, "auto", "exact") and not (old and old.kind == index):
        faiss_index.make(index, len(images), extractor.embed_dim)
    stamps = images.stamps()
    before = rows_before(old, images, stamps)
    new = images.select(row for row, previous in enumerate(before) if previous is None)
    fresh = cached_features(extractor, new) if len(new) else None
    row_in_fresh = fresh.row_of if fresh is not None else {}
    rows = [row for row, path in enumerate(images.paths) if before[row] is not None or path in row_in_fresh]
    if not rows:
        raise UserError(f"none of the {len(images)} images can be read; scan {images.source} to see why")
    kept_images, broken = images.select(rows), dict(fresh.metadata["broken"]) if fresh is not None else {}
    index = index or (old.kind if old else "exact")
    if index == "auto":
        index = faiss_index.choose(len(rows), extractor.embed_dim)
    previous = torch.tensor([-1 if before[row] is None else before[row] for row in rows])
    moved = old is not None and any(old.record["extractor"].get(key) != value for key, value in source.items())
    current = [stamps[row] for row in rows]
    unchanged = old and not moved and old.kind == index and (previous >= 0).all() and list(old.stamps) == current
    if old and unchanged and same_rows(old.images, kept_images):
        return old, Change(0, 0, 0, len(rows), broken, 0)
    embedding = torch.empty(len(rows), extractor.embed_dim)
    if old and (previous >= 0).any():
        embedding[previous >= 0] = old.embedding()[previous[previous >= 0]]
    if fresh is not None:
        added = [row_in_fresh[images.paths[row]] for row in rows if before[row] is None]
        embedding[previous < 0] = fresh.embedding[torch.tensor(added, dtype=torch.long)]

    ann_index, places, tuned = vectors(old, index, embedding, previous)
    record = {
        "format": 1,
        "extractor": {**source, **identity(extractor)},
        "images": images.root,
        "rows": len(rows),
        "index": index,
        "faiss": tuned,
        "words": extractor.backbone.wordless is None,
        "versions": versions(),
    }
    metadata = describe(extractor, kept_images) | {"broken": broken}
    paths, labels, splits, groups = take(kept_images, range(len(kept_images)))
    table = Embeddings(embedding, paths, labels, splits, metadata, groups, kept_images.kind)
    if old and len(new):  # before the index is written: if killed after it, they would stay forever
        forget_features(extractor, new)
    write_index(folder, record, table, current, places, ann_index, extractor.quantized())
    return open_index(folder), compare(old, kept_images, previous, broken, len(zero_rows(embedding)))


def open_old(folder: Path, images: ImageTable, extractor: Extractor, overwrite: bool) -> ImageIndex | None:
    """Return the index to update; None for a new one.

    Raises:
        UserError: the folder holds something else, or an index of other images or another extractor.
    """

    def foreign(place: Path) -> str | None:
        empty = place.is_dir() and not any(place.iterdir())
        return None if empty or (place / RECORD).is_file() else f"no {RECORD}"

    check_place(folder, "an index", foreign)
    if overwrite or not (folder / RECORD).is_file():
        return None
    old = open_index(folder)
    old.check_extractor(extractor)
    if old.images.root != images.root:
        raise UserError(
            f"{folder} indexes {old.images.root}, not {images.root}; choose another place or add `overwrite=True`"
        )
    return old


def rows_before(old: ImageIndex | None, images: ImageTable, stamps: Sequence[str]) -> list[int | None]:
    """Return the row of each image in the existing index; None for a new or changed image."""
    row_of = old.images.row_of if old else {}
    found: list[int | None] = []
    for path, now in zip(images.paths, stamps, strict=True):
        row = row_of.get(path)
        kept = old is not None and row is not None and now != MISSING and same(old.stamps[row], now)
        found.append(row if kept else None)
    return found


def same_rows(one: ImageTable, other: ImageTable) -> bool:
    """Return whether two tables have the same paths, labels, splits and groups."""
    return take(one, range(len(one))) == take(other, range(len(other)))


def vectors(
    old: ImageIndex | None, kind: str, embedding: Tensor, previous: Tensor
) -> tuple[Any, Tensor, dict[str, Any] | None]:
    """Return the approximate index of a table: the old one with new vectors added, or a new one.

    Vectors of removed images stay in it until they are a fifth. Then, and when it has grown to twice the images it
    was trained on, it is rebuilt from the embeddings.

    Args:
        old: the existing index.
        kind: ``exact`` or a factory string.
        embedding: float32 (N, D).
        previous: int64 (N,), row in the existing index, -1 for a new image.

    Returns:
        faiss's index or None, number of each row's vector in it (N,), and its record in ``index.json``.
    """
    places = torch.arange(len(embedding))
    if kind == "exact":
        return None, places, None
    unit = unit_rows(embedding)
    index, trained = None, len(unit)
    if old and old.kind == kind:
        index, trained = old.faiss, old.record["faiss"]["trained_rows"]
        new = previous < 0
        total = index.ntotal + int(new.sum())
        if len(unit) < (1 - DEAD) * total or len(unit) > GROWTH * trained:
            index, trained = None, len(unit)
        else:
            places[~new] = old.places[previous[~new]]
            places[new] = torch.arange(index.ntotal, total)
            index.add(unit[new].numpy())
    if index is None:
        index = faiss_index.build(unit, kind)
    row_of_place = torch.full((index.ntotal,), -1)
    row_of_place[places] = torch.arange(len(unit))
    tuned = faiss_index.tune(index, unit, row_of_place)
    record = {
        "recall@10": tuned.recall,
        "standard_error": tuned.error,
        "sample": tuned.sample,
        "settings": tuned.settings,
        "trained_rows": trained,
    }
    return index, places, record


def compare(
    old: ImageIndex | None, images: ImageTable, previous: Tensor, broken: Mapping[str, str], zeros: int
) -> Change:
    """Count the images that were added, removed, changed and kept."""
    before = set(old.images.paths) if old else set()
    now = set(images.paths)
    kept = int((previous >= 0).sum())
    return Change(len(now - before), len(before - now), len(now & before) - kept, kept, broken, zeros)


def absolute_source(extractor: str, weights: str) -> dict[str, str]:
    """Return extractor and weights as an index records them: paths absolute, names unchanged.

    Raises:
        UserError: the weights are random, so that the extractor cannot be opened again.
    """
    if weights == "none":
        raise UserError('`weights="none"`: search cannot open random weights again; save the extractor first')
    places = {"source": extractor, "weights": weights}
    return {key: str(Path(value).absolute()) if Path(value).exists() else value for key, value in places.items()}
