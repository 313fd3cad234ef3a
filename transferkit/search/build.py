"""Making an index, or bringing one up to date: only new and changed images are embedded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

DEAD = 0.2  # share of vectors of removed images from which an approximate index is made anew
GROWTH = 2  # and how many times the images it was made of


class Change(NamedTuple):
    """What became of the images: numbers of them, path -> reason for the unreadable, rows without direction."""

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
    kind: str | None = None,
    overwrite: bool = False,
) -> tuple[ImageIndex, Change]:
    """Index images, or bring the index of the same images and extractor up to date.

    An image counts as changed when the stamp of its file differs, see :func:`transferkit.data.fingerprint.stamp`.
    Unreadable ones are left out and looked at again the next time. The feature cache keeps what a new index is
    made of; of what is added to an old one nothing stays there, since nothing else reads it.

    Args:
        images: the images.
        folder: the index directory.
        extractor: the extractor, on the device to use.
        source: ``source`` and ``weights`` that open the extractor again, recorded as they are.
        kind: ``exact``, ``auto`` (exact where faiss is not installed), or a factory string of faiss; None: as
            before, at first ``exact``.
        overwrite: replace an index of whatever images and extractor.

    Raises:
        UserError: ``folder`` holds something else; another extractor or other images than the index there;
            no image can be read; faiss is not installed or refuses the kind.
    """
    folder = Path(folder)
    check_folder(folder.absolute().parent)
    sweep(folder.absolute().parent)
    if kind not in (None, "auto", "exact"):
        faiss_index.library()  # before hours of work
    old = open_old(folder, images, extractor, overwrite)
    if kind not in (None, "auto", "exact") and not (old and old.kind == kind):
        faiss_index.make(kind, len(images), extractor.embed_dim)
    stamps = images.stamps()
    before = rows_before(old, images, stamps)
    new = images.select(row for row, previous in enumerate(before) if previous is None)
    fresh = cached_features(extractor, new) if len(new) else None
    row_in_fresh = fresh.row_of if fresh is not None else {}
    rows = [row for row, path in enumerate(images.paths) if before[row] is not None or path in row_in_fresh]
    if not rows:
        raise UserError(f"none of the {len(images)} images can be read; see transferkit scan {images.source}")
    kept_images, broken = images.select(rows), dict(fresh.metadata["broken"]) if fresh is not None else {}
    kind = kind or (old.kind if old else "exact")
    if kind == "auto":
        kind = faiss_index.choose(len(rows), extractor.embed_dim)
    previous = torch.tensor([-1 if before[row] is None else before[row] for row in rows])
    moved = old is not None and any(old.record["extractor"].get(key) != value for key, value in source.items())
    current = [stamps[row] for row in rows]
    unchanged = old and not moved and old.kind == kind and (previous >= 0).all() and list(old.stamps) == current
    if old and unchanged and same_rows(old.images, kept_images):
        return old, Change(0, 0, 0, len(rows), broken, 0)
    embedding = torch.empty(len(rows), extractor.embed_dim)
    if old and (previous >= 0).any():
        embedding[previous >= 0] = old.embedding()[previous[previous >= 0]]
    if fresh is not None:
        added = [row_in_fresh[images.paths[row]] for row in rows if before[row] is None]
        embedding[previous < 0] = fresh.embedding[torch.tensor(added, dtype=torch.long)]

    ann_index, places, tuned = vectors(old, kind, embedding, previous)
    record = {
        "format": 1,
        "extractor": {**source, **identity(extractor)},
        "images": images.root,
        "rows": len(rows),
        "index": kind,
        "faiss": tuned,
        "versions": versions(),
    }
    metadata = describe(extractor, kept_images) | {"broken": broken}
    table = Embeddings(embedding, kept_images.paths, kept_images.labels, kept_images.splits, metadata)
    if old and len(new):  # before the index is written: killed after it, nobody would think of them again
        forget_features(extractor, new)
    write_index(folder, record, table, current, places, ann_index)
    return open_index(folder), compare(old, kept_images, previous, broken, len(zero_rows(embedding)))


def open_old(folder: Path, images: ImageTable, extractor: Extractor, overwrite: bool) -> ImageIndex | None:
    """The index to bring up to date; None for a new one.

    Raises:
        UserError: the folder holds something else, or an index that does not go with images and extractor.
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
    """The row of each image in the index before; None for a new or changed one."""
    row_of = old.images.row_of if old else {}
    found: list[int | None] = []
    for path, now in zip(images.paths, stamps, strict=True):
        row = row_of.get(path)
        kept = old is not None and row is not None and now != MISSING and same(old.stamps[row], now)
        found.append(row if kept else None)
    return found


def same_rows(one: ImageTable, other: ImageTable) -> bool:
    """Whether two tables have the same paths, labels and splits."""
    return (one.paths, one.labels, one.splits) == (other.paths, other.labels, other.splits)


def vectors(
    old: ImageIndex | None, kind: str, embedding: Tensor, previous: Tensor
) -> tuple[Any, Tensor, dict[str, Any] | None]:
    """The approximate index of a table, the old one with what is new added where that is still good.

    Removed vectors stay in it, named by no row, until they are a fifth; then, and when it has grown to twice
    what it was trained on, it is made anew from the embeddings.

    Args:
        old: the index before.
        kind: ``exact`` or a factory string.
        embedding: float32 (N, D).
        previous: (N,) row in the old index, -1 for a new one.

    Returns:
        faiss's index or None, place of each row in it (N,), and what ``index.json`` says of it.
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
    """What became of the images of the index before, and which came new."""
    before = set(old.images.paths) if old else set()
    now = set(images.paths)
    kept = int((previous >= 0).sum())
    return Change(len(now - before), len(before - now), len(now & before) - kept, kept, broken, zeros)


def absolute_source(extractor: str, weights: str) -> dict[str, str]:
    """Extractor and weights as an index records them: paths are made absolute, names stay.

    Raises:
        UserError: random weights, which nothing could open again.
    """
    if weights == "none":
        raise UserError("--weights none: random weights cannot be opened again by search; save the extractor first")
    places = {"source": extractor, "weights": weights}
    return {key: str(Path(value).absolute()) if Path(value).exists() else value for key, value in places.items()}
