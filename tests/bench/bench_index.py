"""Index types side by side on simulated embeddings: `python tests/bench/bench_index.py --help`.

Rows are clustered: centres in a space of few dimensions, spread around them, carried to the full width with a
little noise, scaled to unit length. Queries are drawn alike and are not among the rows. Search times are of one
query at a time, with the exact ranking of what faiss proposes; `memory` is the size of the index, `peak` what
building it took beside the rows themselves; `as sampled` is the recall that `transferkit index` would print.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.cli.console import table
from transferkit.search import faiss_index
from transferkit.similarity import top_k, unit_rows

K = 10


def draw(rows: int, width: int, latent: int, clusters: int, seed: int) -> Tensor:
    """Return unit rows (N, D) around centers that do not depend on the seed."""
    fixed = torch.Generator().manual_seed(12345)
    centres = torch.randn(clusters, latent, generator=fixed)
    carry = torch.randn(latent, width, generator=fixed) / latent**0.5
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(rows, width)
    for part in torch.split(values, 50_000):
        which = torch.randint(clusters, (len(part),), generator=generator)
        inner = centres[which] + 0.6 * torch.randn(len(part), latent, generator=generator)
        part.copy_(unit_rows(inner @ carry + 0.1 * torch.randn(len(part), width, generator=generator)))
    return values


def exact(unit: Tensor, queries: Tensor) -> tuple[list[Any], Tensor]:
    """Measure exact search: the row of the table, and the rows found (Q, 10)."""
    found, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(top_k(query[None], unit, K, normalize=False)[1][0])
        seconds.append(time.perf_counter() - started)
    return ["exact", 0.0, median_ms(seconds), unit.nbytes / 2**20, None, 1.0, None, ""], torch.stack(found)


def approximately(factory: str, unit: Tensor, queries: Tensor, truth: Tensor) -> list[Any]:
    """Return one row of the table."""
    before = peak_memory(reset=True)
    started = time.perf_counter()
    index = faiss_index.build(unit, factory)
    seconds = time.perf_counter() - started
    peak = (peak_memory() - before) / 2**20
    everything = torch.arange(len(unit))
    tuned = faiss_index.tune(index, unit, everything)
    hits, times = 0, []
    for query, wanted in zip(queries, truth, strict=True):
        started = time.perf_counter()
        rows = faiss_index.nearest(index, query, everything, faiss_index.candidates(K))
        mine = faiss_index.rerank(query, rows, unit[rows], K)[1]
        times.append(time.perf_counter() - started)
        hits += len(set(mine.tolist()) & set(wanted.tolist()))
    size = faiss_index.library().serialize_index(index).nbytes / 2**20
    setting = ", ".join(f"{name} {value}" for name, value in tuned.settings.items())
    return [factory, seconds, median_ms(times), size, peak, hits / truth.numel(), tuned.recall, setting]


def median_ms(seconds: list[float]) -> float:
    """Return the median time in milliseconds."""
    return 1000 * sorted(seconds)[len(seconds) // 2]


def peak_memory(*, reset: bool = False) -> int:
    """Return the peak resident bytes of this process since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    """Draw, build, search, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="1000000 for the table in the documentation")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--latent", type=int, default=48)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--index", nargs="*", help="faiss's factory strings; by default Flat, HNSW32 and an IVF-PQ")
    options = parser.parse_args()
    shape = (options.width, options.latent, max(10, options.rows // 200))
    unit, queries = draw(options.rows, *shape, seed=1), draw(options.queries, *shape, seed=2)
    kinds = options.index or ["Flat", "HNSW32", faiss_index.choose(max(options.rows, 1_000_000), options.width)]
    first, truth = exact(unit, queries)
    rows = [first]
    print(*first, flush=True)
    for factory in kinds:
        rows.append(approximately(factory, unit, queries, truth))
        print(*rows[-1], flush=True)
    title = f"{options.rows:,} x {options.width}, {torch.get_num_threads()} threads, {options.queries} queries"
    table(["index", "build s", "search ms", "memory MB", "peak MB", "recall@10", "as sampled", "setting"], rows, title)


if __name__ == "__main__":
    main()
