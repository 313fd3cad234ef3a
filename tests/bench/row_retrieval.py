"""Self-retrieval metrics against faiss's IndexFlatIP; see bench_similarity.py, which does the work."""

from collections.abc import Iterator

import torch

from tests.bench.bench_similarity import KS, draw, peak_memory, search, seconds
from tests.bench.timing import Row, in_turns
from transferkit.similarity import evaluate, top_k
from transferkit.similarity.retrieval import retrieval

CLASSES = 100


def rows(full: bool) -> Iterator[Row]:
    """K up to 100 in turns with faiss; once, all of `similarity.evaluate` with the R-based metrics, and its memory."""
    count = 50_000 if full else 20_000
    unit, classes = draw(count, 512, CLASSES)
    found = top_k(unit[:500], unit, 100, normalize=False)[1]
    shared = (found == search(unit, 100)[:500]).double().mean().item()
    assert shared > 0.999, f"only {shared:.2%} of the neighbours are faiss's"
    sides = unit, classes, unit, classes, CLASSES
    ours, theirs = in_turns(
        lambda: retrieval(*sides, ks=KS, exclude_self=True, class_sized=False), lambda: search(unit, 100)
    )
    before = peak_memory(reset=True)
    evaluate(unit, classes, ks=KS, class_sized=False)
    extra = (peak_memory() - before) / 2**20
    whole = seconds(lambda: evaluate(unit, classes, ks=KS, class_sized=True))
    note = (
        f"{torch.get_num_threads()} threads, {shared:.2%} of the neighbours the same; "
        f"all of evaluate with the R-based metrics, once: {whole:.3g} s"
    )
    yield Row(
        f"self-retrieval, K ≤ 100, {count:,} × 512", "faiss IndexFlatIP top-100", "cheaper", 1.3, ours, theirs,
        {f"{extra:.0f} MiB extra ≤ 1024": extra <= 1024}, note,
    )  # fmt: skip
