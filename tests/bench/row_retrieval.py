"""Self-retrieval metrics with K up to 100 against faiss's IndexFlatIP, which only finds the 100 nearest rows."""

from collections.abc import Iterator

import faiss
import torch
from torch import Tensor

from tests.bench.bench_probe import peak_memory
from tests.bench.timing import Row, measured, seconds
from transferkit.similarity import evaluate, top_k, unit_rows
from transferkit.similarity.retrieval import retrieval

KS, CLASSES = (1, 5, 10, 100), 100


def rows(full: bool) -> Iterator[Row]:
    """Time in turns with faiss, with as many threads; once, all of `similarity.evaluate`, and its memory."""
    count = 50_000 if full else 20_000
    faiss.omp_set_num_threads(torch.get_num_threads())
    unit, classes = draw(count, 512)
    found = top_k(unit[:500], unit, 100, normalize=False)[1]
    shared = (found == search(unit, 100)[:500]).double().mean().item()
    assert shared > 0.999, f"only {shared:.2%} of the neighbours are faiss's"
    sides = unit, classes, unit, classes, CLASSES
    before = peak_memory(reset=True)
    evaluate(unit, classes, ks=KS, class_sized=False)
    extra = (peak_memory() - before) / 2**20
    whole = seconds(lambda: evaluate(unit, classes, ks=KS, class_sized=True))
    note = (
        f"{torch.get_num_threads()} threads, {shared:.2%} of the neighbours the same; "
        f"all of evaluate with the R-based metrics, once: {whole.wall:.3g} s"
    )
    yield measured(
        f"self-retrieval, K ≤ 100, {count:,} × 512", "faiss IndexFlatIP top-100", "cheaper", 1.3,
        lambda: retrieval(*sides, ks=KS, exclude_self=True, class_sized=False), lambda: search(unit, 100),
        {f"{extra:.0f} MiB extra ≤ 1024": extra <= 1024}, note,
    )  # fmt: skip


def draw(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Return unit rows around the means of their classes, and the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(CLASSES, (rows,), generator=generator)
    means = torch.randn(CLASSES, width, generator=generator)
    return unit_rows(0.4 * means[classes] + torch.randn(rows, width, generator=generator)), classes


def search(rows: Tensor, k: int) -> Tensor:
    """Return the k nearest rows of every row by faiss, itself included, `(N, k)` int64."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    return torch.from_numpy(index.search(rows.numpy(), k)[1])
