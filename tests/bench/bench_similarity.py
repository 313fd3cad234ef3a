"""Self-retrieval against faiss, and its memory: `python tests/bench/bench_similarity.py --help`.

A: our retrieval metrics with K up to 100, exact, ties to the smaller row (`class_sized=False`). B: faiss's
`IndexFlatIP`, the 100 nearest alone, no metric computed from them. Both on the same unit rows and with as many
threads, in turns A B A B; the medians' ratio counts. The neighbours of both are checked to be the same. Beside it,
once each: all of `similarity.evaluate`, with the R-based metrics and without, and the memory that it takes beyond the
embeddings (Linux).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import torch
from torch import Tensor

from transferkit.similarity import evaluate, top_k, unit_rows
from transferkit.similarity.retrieval import retrieval

KS = (1, 5, 10, 100)


def draw(rows: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Unit rows around the means of their classes, and the classes."""
    generator = torch.Generator().manual_seed(0)
    classes_of = torch.randint(classes, (rows,), generator=generator)
    means = torch.randn(classes, width, generator=generator)
    noise = torch.randn(rows, width, generator=generator)
    return unit_rows(0.4 * means[classes_of] + noise), classes_of


def search(rows: Tensor, k: int) -> Tensor:
    """The k nearest of every row, itself among them, `(N, k)` int64."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    return torch.from_numpy(index.search(rows.numpy(), k)[1])


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_memory(*, reset: bool = False) -> int:
    """Peak resident bytes of this process since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main(options: argparse.Namespace) -> None:
    """Everything, printed line by line."""
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rows, classes = draw(options.rows, options.width, options.classes)
    print(f"{options.rows:,} x {options.width}, {options.classes} classes, {options.threads} threads, "
          f"torch {torch.__version__}, faiss {faiss.__version__}")  # fmt: skip

    same = top_k(rows[:500], rows, 100, normalize=False)[1] == search(rows, 100)[:500]
    print(f"neighbours that are the same: {same.double().mean():.4%} of 500 x 100")

    sides = rows, classes, rows, classes, options.classes
    ours, theirs = [], []
    for _ in range(options.repeats):
        ours.append(seconds(lambda: retrieval(*sides, ks=KS, exclude_self=True, class_sized=False)))
        theirs.append(seconds(lambda: search(rows, 100)))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"retrieval metrics, K <= 100   {a:8.2f} s  {min(ours):.2f} .. {max(ours):.2f}")
    print(f"faiss IndexFlatIP top-100     {b:8.2f} s  {min(theirs):.2f} .. {max(theirs):.2f}")
    print(f"ratio                         {a / b:8.2f}    (target 1.3)")
    for name, class_sized in (("evaluate, without R-based   ", False), ("evaluate, with R-based      ", True)):
        before = peak_memory(reset=True)
        took = seconds(lambda sized=class_sized: evaluate(rows, classes, ks=KS, class_sized=sized))
        extra = (peak_memory() - before) / 2**20
        print(f"{name}  {took:8.2f} s  {took / b:.2f} x faiss, {extra:.0f} MiB beyond the embeddings (target 1024)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="of A B")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    main(parser.parse_args())
