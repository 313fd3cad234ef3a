"""Approximate search with faiss (Douze et al. 2024, arXiv:2401.08281), by inner product of unit rows.

faiss only proposes candidates, which are ranked again by exact cosine. So the cosines shown are exact, and a coarse
code (PQ) does not change the order of the candidates.
"""

import math
import re
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.runtime.files import file_sha256
from transferkit.similarity import top_k

INSTALL = "pip install 'transferkit[faiss]'"
EXACT_ROWS = 50_000  # below, an exact search takes about as long as reading the files
HNSW_ROWS = 500_000  # above, the build time (0.1 ms per row and more) and memory of HNSW outweigh its recall
TARGET = 0.95
SAMPLE = 500  # recall per query has a standard deviation of about 0.17 in an IVF-PQ: 0.008 for the mean
ENDS_FAISS = re.compile(r"(HNSW[01]|IVF0|x0)(?!\d)")  # in a factory string: faiss aborts the process


class Tuned(NamedTuple):
    """Recall of an index against exact search, its standard error, the sample size, and the search settings."""

    recall: float
    error: float
    sample: int
    settings: dict[str, int]


def library() -> Any:
    """Import faiss.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"an approximate index needs faiss: {INSTALL}; exact search does not") from error
    return faiss


def is_installed() -> bool:
    """Return whether faiss can be imported."""
    return find_spec("faiss") is not None


def choose(rows: int, width: int) -> str:
    """Choose the kind of index by the size of a table: exact, HNSW, or IVF-PQ; exact if faiss is not installed.

    Args:
        rows: N.
        width: D.
    """
    if rows < EXACT_ROWS or not is_installed():
        return "exact"
    if rows < HNSW_ROWS:
        return "HNSW32"
    lists = 2 ** round(math.log2(2 * rows**0.5))
    parts = max(part for part in range(1, max(1, width // 8) + 1) if width % part == 0)  # bytes per row
    return f"IVF{lists},PQ{parts}"


def make(factory: str, rows: int, width: int) -> Any:
    """Make an empty, untrained index; it fails early if faiss does not support the kind.

    Args:
        factory: faiss's factory string, such as ``Flat``, ``HNSW32`` or ``IVF1024,PQ64``.
        rows: N.
        width: D.

    Raises:
        UserError: faiss is not installed, does not know such an index, or it needs more rows.
    """
    faiss = library()
    if (least := least_rows(factory)) > rows:
        raise UserError(
            f"index {factory!r} needs at least {least:,} training images, got {rows:,}; "
            'give `index="auto"` or `index="exact"`'
        )
    try:
        if ENDS_FAISS.search(factory):
            raise RuntimeError("a number in it is too small")
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        parts = " (the number after PQ must divide it)" if "PQ" in factory else ""
        raise UserError(
            f"faiss cannot make an index {factory!r} for embeddings of width {width}{parts}; "
            "give `index` auto, exact, Flat or HNSW32"
        ) from error


def least_rows(factory: str) -> int:
    """Return how many rows the k-means of an index need: one per list, and one per code word."""
    lists = [int(number) * (1024 if kilo else 1) for number, kilo in re.findall(r"IVF(\d{1,9})(k?)", factory)]
    bits = [int(number or 8) for number in re.findall(r"[PR]Q\d+(?:x(\d{1,2}))?", factory)]
    return max([1, *lists, *(1 << number for number in bits)])


def build(unit: Tensor, factory: str) -> Any:
    """Train an index on rows and add them.

    Args:
        unit: float32 (N, D), unit rows.
        factory: as for :func:`make`.

    Raises:
        UserError: as for :func:`make`, or faiss cannot train such an index on these rows.
    """
    index = make(factory, len(unit), unit.shape[1])
    try:
        index.train(training_rows(index, unit).numpy())
        index.add(unit.numpy())
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"faiss cannot make an index {factory!r} of {len(unit)} x {unit.shape[1]} numbers ({reason(error)}); "
            'give `index="auto"` or `index="exact"`'
        ) from error
    return index


def training_rows(index: Any, unit: Tensor) -> Tensor:
    """Return the rows to train an index on: all, or a random sample of 100,000, or 50 per list if that is more.

    faiss recommends at least 39 per list; more take proportionally longer and hardly change the recall.
    """
    lists = getattr(library().try_extract_index_ivf(index), "nlist", 0)
    most = max(100_000, 50 * lists)
    if len(unit) <= most:
        return unit
    return unit[torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))[:most]]


def tune(index: Any, unit: Tensor, row_of_place: Tensor, k: int = 10) -> Tuned:
    """Widen the search of an index (``nprobe`` or ``efSearch``) until recall@k on a sample of rows reaches 0.95.

    Recall@k is the share of the k nearest rows by exact cosine, without the row itself, that are found. The index
    keeps the setting.

    Args:
        index: faiss's index.
        unit: float32 (N, D), unit rows.
        row_of_place: row of each vector in the index, -1 for a removed one.
        k: number of neighbors.
    """
    sample = torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
    k = min(k, len(unit) - 1)
    if k < 1:
        return Tuned(1.0, 0.0, 0, {})
    exact = without(sample, top_k(unit[sample], unit, k + 1, normalize=False)[1], k)
    knob, top = widest(index, len(unit))
    value = {"nprobe": 1, "efSearch": 128}.get(knob, 0)
    while True:
        if knob:
            library().ParameterSpace().set_index_parameter(index, knob, value)
        found = [nearest(index, unit[row], row_of_place, candidates(k)) for row in sample]
        ranked = [rerank(unit[row], rows, unit[rows], k + 1)[1] for row, rows in zip(sample, found, strict=True)]
        hits = [
            len(set(mine[mine != row].tolist()[:k]) & set(theirs.tolist())) / k
            for row, mine, theirs in zip(sample, ranked, exact, strict=True)
        ]
        recall, error = statistics.fmean(hits), statistics.stdev(hits) / len(hits) ** 0.5
        if recall >= TARGET or value >= top:
            return Tuned(recall, error, len(sample), {knob: value} if knob else {})
        value = min(2 * value, top)


def widest(index: Any, rows: int) -> tuple[str, int]:
    """Return the parameter that widens an index's search, and its largest useful value; an empty name if none."""
    space = library().ParameterSpace()
    space.initialize(index)
    ranges = [space.parameter_ranges.at(number) for number in range(space.parameter_ranges.size())]
    for name in ("nprobe", "efSearch"):
        for found in ranges:
            if found.name == name:
                values = [found.values.at(number) for number in range(found.values.size())]
                if not values:  # one list, which is always searched
                    return "", 0
                return name, int(2 * max(values)) if name == "nprobe" else min(1024, rows)  # all lists; 1024 candidates
    return "", 0


def without(rows: Tensor, found: Tensor, k: int) -> Tensor:
    """Remove each row from what was found for it: (Q, k + 1) -> (Q, k)."""
    other = found != rows[:, None]
    other[other.all(1), -1] = False  # equal rows may have displaced the row itself
    return found[other].view(len(rows), k)


def candidates(k: int) -> int:
    """Return how many candidates faiss proposes for k results."""
    return max(100, 10 * k)


def nearest(index: Any, query: Tensor, row_of_place: Tensor, wanted: int) -> Tensor:
    """Return the rows that faiss proposes, ascending; fewer than wanted if its search finds no more.

    Vectors of removed images are skipped: the search is widened until enough others are found.

    Args:
        index: faiss's index.
        query: float32 (D,), unit length.
        row_of_place: as for :func:`tune`.
        wanted: number of rows.
    """
    fetch = min(wanted, index.ntotal)
    while True:
        places = torch.from_numpy(index.search(query[None].numpy(), fetch)[1][0])
        rows = row_of_place[places[places >= 0]]
        rows = rows[rows >= 0]
        if len(rows) >= wanted or fetch == index.ntotal or (places < 0).any():
            return rows[:wanted].sort().values
        fetch = min(2 * fetch, index.ntotal)


def rerank(query: Tensor, rows: Tensor, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k of some rows nearest to a query: cosine (k,) and rows (k,), in the order of exact search.

    Args:
        query: (D,), unit length.
        rows: (C,), ascending.
        unit: (C, D), their unit rows.
        k: number of rows at most.
    """
    if not len(rows):
        return query.new_empty(0), rows
    cosine, place = top_k(query[None], unit, k, normalize=False)
    return cosine[0], rows[place[0]]


def write(index: Any, path: Path) -> str:
    """Write an index file and return its SHA-256.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        library().write_index(index, str(path))
    except RuntimeError as error:
        raise UserError(f"cannot write {path.name}: {reason(error)}; free disk space") from error
    return file_sha256(path)


def read(path: Path, expected: str) -> Any:
    """Read an index file whose SHA-256 is known.

    Raises:
        UserError: faiss is not installed; the file is missing, is another one, or cannot be read by this faiss.
    """
    faiss = library()
    remedy = "search with `exact=True`, or index the images again with `overwrite=True`"
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")
    if file_sha256(path) != expected:
        raise UserError(f"{path} does not have the SHA-256 in index.json; {remedy}")
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise UserError(f"this faiss cannot read {path} ({reason(error)}); {remedy}") from error


def reason(error: RuntimeError | MemoryError) -> str:
    """Return faiss's message without the location in its source code."""
    return str(error).strip().splitlines()[-1].rpartition("failed: ")[2][:200]
