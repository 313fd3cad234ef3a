"""Cost of looking at results: an audit, a report and an explanation. Each is measured in a process of its own.

python -m tests.bench.bench_see [audit report explain]

``audit`` is the command on a table of 50,000 embeddings of 512 numbers in 50 classes, 5 % of the labels wrong: seconds
of CPU time and the peak of the process's memory, libraries included. ``report`` is that of a run of 2,000 photographs
in 50 classes: seconds by the clock, seconds of CPU time, which tells more where others work, and bytes. ``explain`` is
Grad-CAM of a batch against a plain forward pass of the same batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from transferkit.data.embeddings import Embeddings
from transferkit.extractor import Extractor
from transferkit.extractor.grad_cam import GradCam

ROWS, WIDTH, CLASSES = 50_000, 512, 50


def main() -> None:
    """Print a row per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["audit", "report", "explain"], help="audit, report, explain")
    print("| what | measured | limit |\n|---|---|---|", flush=True)
    for what in parser.parse_args().what:
        for row in {"audit": audit, "report": report, "explain": explain}[what]():
            print(f"| {' | '.join(row)} |", flush=True)


def audit() -> list[tuple[str, str, str]]:
    """Run the command on a table of drawn embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.parquet"
        subprocess.run([sys.executable, "-c", "from tests.bench.bench_see import write_table; "
                        f"write_table({str(file)!r})"], check=True)  # fmt: skip
        command = [sys.executable, "-m", "transferkit", "audit", str(file), "--out", f"{folder}/audit"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        assert status == 0, status
        counts = json.loads((Path(folder) / "audit" / "audit.json").read_text())
    what = f"audit of {ROWS:,} × {WIDTH}, {CLASSES} classes ({counts['counts']['label']:,} labels found)"
    seconds = used.ru_utime + used.ru_stime
    return [(what, f"{seconds:.1f} s of CPU, {used.ru_maxrss / 1024:.0f} MiB", "60 s, 1,024 MiB")]


def write_table(file: str) -> None:
    """Write a table whose classes overlap as those of photographs do: a probe names about nine of ten rows."""
    drawn = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (ROWS,), generator=drawn)
    rows = torch.randn(ROWS, WIDTH, generator=drawn) + 0.22 * torch.randn(CLASSES, WIDTH, generator=drawn)[target]
    wrong = torch.rand(ROWS, generator=drawn) < 0.05
    label = torch.where(wrong, torch.randint(CLASSES, (ROWS,), generator=drawn), target)
    names = [f"class {number:02d}" for number in label.tolist()]
    Embeddings(rows, [f"{row:06d}.jpg" for row in range(ROWS)], names, [None] * ROWS, {}).save(file)


def report() -> list[tuple[str, str, str]]:
    """Write the report of the example run at the size that the limit is for."""
    from tests.reports.example_results import write_photographed_run
    from transferkit.reports.report import report_of

    with tempfile.TemporaryDirectory() as folder:
        run = write_photographed_run(Path(folder)).run
        start, used = time.perf_counter(), time.process_time()
        file = report_of(run)
        seconds, used, size = time.perf_counter() - start, time.process_time() - used, file.stat().st_size
    measured = f"{seconds:.1f} s, {used:.1f} s of CPU on {os.cpu_count()} cores, {size / 1e6:.1f} MB"
    return [("report of 2,000 images, 50 classes", measured, "10 s, 8 MB")]


def explain() -> list[tuple[str, str, str]]:
    """Compare Grad-CAM with a forward pass, in turns."""
    torch.set_num_threads(1)
    rows = []
    for name, batch in (("resnet18", 16), ("vit_b_16", 4)):
        extractor = Extractor.from_pretrained(name, weights="none")
        extractor.head = torch.nn.Linear(extractor.embed_dim, 10)
        grad_cam = GradCam(extractor)
        pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
        ratios = []
        for _ in range(7):
            start = time.process_time()
            extractor(pixels)
            between = time.process_time()
            grad_cam(pixels)
            ratios.append((time.process_time() - between) / (between - start))
        rows.append((f"explain, {name}", f"{statistics.median(ratios):.2f} × a forward pass", "3 ×"))
    return rows


if __name__ == "__main__":
    main()
