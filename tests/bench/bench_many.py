"""Cost of many classes and of many rows: seconds of CPU time, and MiB of memory beyond the smallest size's.

python -m tests.bench.bench_many [--classes 1000 21841] [--rows 250000 500000 1000000]

Each row of the table is a process of its own. ``metrics`` are those of a validation of 4,096 images; ``evaluate``
measures and draws the same 10,000 embeddings, of 1,000 and of 5,000 classes; ``csv`` and ``parquet`` open a
manifest whose rows are in random order.
"""

import argparse
import json
import subprocess
import sys
import tempfile

COMMON = """
import json, random, resource, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.csv, pyarrow.parquet as pq, torch
from transferkit import evaluation
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.training.metrics import classification_metrics
count, folder = int(sys.argv[1]), Path(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""
METRICS = """
before, start = peak(), time.process_time()
metrics = classification_metrics(count, "val")
for batch in (torch.arange(4096) % count).split(64):
    metrics.update(torch.rand(len(batch), count).softmax(1), batch)
metrics.compute()
"""
EVALUATE = """
rows = 10_000
names = [f"class {row % count:05d}" for row in range(rows)]
drawn = torch.randn(rows, 16, generator=torch.Generator().manual_seed(0))
table = Embeddings(drawn, [f"{row:06d}" for row in range(rows)], names, [None] * rows, {})
before, start = peak(), time.process_time()
evaluation.measure(table)
evaluation.draw(table, None, folder)
"""
MANIFEST = """
order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
paths = pa.array([f"class_{row % 1000:04d}/image_{row:08d}.jpeg" for row in order])
written = pa.table({"path": paths, "label": pa.compute.utf8_slice_codeunits(paths, 6, 10)})
file = folder / f"m.{KIND}"
pq.write_table(written, file) if KIND == "parquet" else pa.csv.write_csv(written, file)
del order, paths, written
before, start = peak(), time.process_time()
assert len(open_images(file)) == count
"""
END = "print(json.dumps([time.process_time() - start, peak() - before]))"


def main() -> None:
    """Print a row per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000, 21_841])
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    options = parser.parse_args()
    print("| what | count | CPU seconds | per million | MiB more |\n|---|---:|---:|---:|---:|", flush=True)
    for what, code, counts in (
        ("metrics", METRICS, options.classes),
        ("evaluate", EVALUATE, [1_000, 5_000]),
        ("csv", f"KIND = 'csv'\n{MANIFEST}", options.rows),
        ("parquet", f"KIND = 'parquet'\n{MANIFEST}", options.rows),
    ):
        for count in counts:
            seconds, more = measure(code, count)
            print(f"| {what} | {count:,} | {seconds:.1f} | {seconds / count * 1e6:.1f} | {more:.0f} |", flush=True)


def measure(code: str, count: int) -> tuple[float, float]:
    """Return seconds of CPU time and MiB of one size, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COMMON + code + END, str(count), folder]
        seconds, more = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, more


if __name__ == "__main__":
    main()
