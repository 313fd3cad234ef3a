"""Approximate search with faiss (Douze et al. 2024, arXiv:2401.08281), by inner product of unit rows.

faiss only proposes: what it finds is ranked again by exact cosine, so the figures shown are exact and a coarse
code (PQ) costs no order among the rows it proposed.
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
EXACT_ROWS = 50_000  # below it an exact search takes about as long as reading the files
HNSW_ROWS = 500_000  # above it HNSW's build (0.1 ms a row and more) and memory weigh more than its recall
TARGET = 0.95
SAMPLE = 500  # recall varies by about 0.17 from query to query in an IVF-PQ: 0.008 is left of that in the mean
ENDS_FAISS = re.compile(r"(HNSW[01]|IVF0|x0)(?!\d)")  # in a factory string: with the whole process, no exception


class Tuned(NamedTuple):
    """How well an index finds what exact search finds, with standard error, and the setting that does it."""

    recall: float
    error: float
    sample: int
    settings: dict[str, int]


def library() -> Any:
    """The faiss module.

    Raises:
        UserError: it is not installed, with the command that installs it.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"an approximate index needs faiss: {INSTALL}, or use --index exact") from error
    return faiss


def is_installed() -> bool:
    """Whether there is a faiss to import."""
    return find_spec("faiss") is not None


def choose(rows: int, width: int) -> str:
    """The kind of index for a table: exact, HNSW, or IVF-PQ, by size; exact where faiss is not installed.

    Args:
        rows: N.
        width: D.
    """
    if rows < EXACT_ROWS or not is_installed():
        return "exact"
    if rows < HNSW_ROWS:
        return "HNSW32"
    lists = 2 ** round(math.log2(2 * rows**0.5))
    parts = max(part for part in range(1, max(1, width // 8) + 1) if width % part == 0)  # bytes a row
    return f"IVF{lists},PQ{parts}"


def make(factory: str, rows: int, width: int) -> Any:
    """An index with nothing in it, to train on rows of a width: what is wrong with a kind is said before any work.

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
            f"faiss makes no index {factory!r} of {rows:,} images: it learns from {least:,} at least; "
            "give --index auto or exact"
        )
    try:
        if ENDS_FAISS.search(factory):
            raise RuntimeError("too small a number in it")
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        parts = " (the number after PQ has to divide it)" if "PQ" in factory else ""
        raise UserError(
            f"faiss makes no index {factory!r} of embeddings of width {width}{parts}; "
            "give --index auto, exact, Flat or HNSW32"
        ) from error


def least_rows(factory: str) -> int:
    """How many rows the k-means in an index need: one a list, and one a code word."""
    lists = [int(number) * (1024 if kilo else 1) for number, kilo in re.findall(r"IVF(\d{1,9})(k?)", factory)]
    bits = [int(number or 8) for number in re.findall(r"[PR]Q\d+(?:x(\d{1,2}))?", factory)]
    return max([1, *lists, *(1 << number for number in bits)])


def build(unit: Tensor, factory: str) -> Any:
    """Train an index on rows and add them.

    Args:
        unit: float32 (N, D), unit rows.
        factory: as of :func:`make`.

    Raises:
        UserError: as of :func:`make`, or faiss does not train such an index on these rows.
    """
    index = make(factory, len(unit), unit.shape[1])
    try:
        index.train(training_rows(index, unit).numpy())
        index.add(unit.numpy())
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"faiss makes no index {factory!r} of {len(unit)} x {unit.shape[1]} numbers ({reason(error)}); "
            "give --index auto or exact"
        ) from error
    return index


def training_rows(index: Any, unit: Tensor) -> Tensor:
    """Rows to train an index on: all, or where they are many a sample of 100,000 and 50 a list.

    faiss advises 39 a list at least; more cost k-means time in proportion and hardly change the recall.
    """
    lists = getattr(library().try_extract_index_ivf(index), "nlist", 0)
    most = max(100_000, 50 * lists)
    if len(unit) <= most:
        return unit
    return unit[torch.randperm(len(unit), generator=torch.Generator().manual_seed(0))[:most]]


def tune(index: Any, unit: Tensor, row_of_place: Tensor, k: int = 10) -> Tuned:
    """Search a sample of the rows, widening the search (``nprobe`` or ``efSearch``) until recall@k reaches 0.95.

    Recall@k: the share of the k nearest by exact cosine, the row itself left out, that are found. The setting
    stays in the index.

    Args:
        index: of faiss.
        unit: float32 (N, D), unit rows.
        row_of_place: row of each vector in the index, -1 for one that is no longer a row.
        k: neighbours.
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
    """The parameter that widens an index's search, and its largest sensible value; an empty name if it has none."""
    space = library().ParameterSpace()
    space.initialize(index)
    ranges = [space.parameter_ranges.at(number) for number in range(space.parameter_ranges.size())]
    for name in ("nprobe", "efSearch"):
        for found in ranges:
            if found.name == name:
                values = [found.values.at(number) for number in range(found.values.size())]
                if not values:  # one list: all of it is searched
                    return "", 0
                return name, int(2 * max(values)) if name == "nprobe" else min(1024, rows)  # all lists; 1024 candidates
    return "", 0


def without(rows: Tensor, found: Tensor, k: int) -> Tensor:
    """What was found for each row without the row itself: (Q, k + 1) -> (Q, k)."""
    other = found != rows[:, None]
    other[other.all(1), -1] = False  # equal rows may crowd out the row itself
    return found[other].view(len(rows), k)


def candidates(k: int) -> int:
    """How many rows faiss proposes where k are wanted."""
    return max(100, 10 * k)


def nearest(index: Any, query: Tensor, row_of_place: Tensor, wanted: int) -> Tensor:
    """Rows that faiss proposes, ascending; fewer than wanted where its search reaches no more.

    Vectors of removed images are passed over: the search is widened until enough others are found.

    Args:
        index: of faiss.
        query: float32 (D,), unit length.
        row_of_place: as in :func:`tune`.
        wanted: how many.
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
    """The k of some rows nearest to a query: cosine (k,) and rows (k,), as exact search orders them.

    Args:
        query: (D,), unit length.
        rows: (C,), ascending.
        unit: (C, D), their unit rows.
        k: how many at most.
    """
    if not len(rows):
        return query.new_empty(0), rows
    cosine, place = top_k(query[None], unit, k, normalize=False)
    return cosine[0], rows[place[0]]


def write(index: Any, path: Path) -> str:
    """Write an index file; its SHA-256."""
    try:
        library().write_index(index, str(path))
    except RuntimeError as error:
        raise UserError(f"cannot write {path.name}: {reason(error)}; free disk space") from error
    return file_sha256(path)


def read(path: Path, expected: str) -> Any:
    """Read an index file whose SHA-256 is known.

    Raises:
        UserError: faiss is not installed, the file is not there, or is another one.
    """
    faiss = library()
    remedy = "search with --exact, or index anew with --overwrite"
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")
    if file_sha256(path) != expected:
        raise UserError(f"{path} is not the file that index.json names by its SHA-256; {remedy}")
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise UserError(f"this faiss cannot read {path} ({reason(error)}); {remedy}") from error


def reason(error: RuntimeError | MemoryError) -> str:
    """faiss's message without the place in its source."""
    return str(error).strip().splitlines()[-1].rpartition("failed: ")[2][:200]
