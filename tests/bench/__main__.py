"""Every number that transferkit claims for its speed: python -m tests.bench [--full] [--only NAME ...]

Each row is a ratio, measured in turns A B A B in one run, after both sides were checked to compute the same thing.
"""

import argparse
import importlib
import json
import logging
import os
import statistics
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from tests.bench import inputs, timing
from tests.bench.timing import Row
from transferkit.training.trainer import quiet_libraries

NAMES = tuple(sorted(path.stem.removeprefix("row_") for path in Path(__file__).parent.glob("row_*.py")))
LIBRARIES = ("torch", "torchvision", "transformers", "lightning", "numpy", "pillow", "scikit-learn", "faiss-cpu")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
HEADER = "| what | against | ratio, median (min–max) | of CPU time | target | reached | ours, theirs | note |"


def main() -> int:
    """Measure, print and write; return 1 if a row raised an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="full sizes, without a time limit")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--pairs", type=int, default=timing.pairs, help="of A B; give fewer only for a trial")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for bench.md and bench.json")
    options = parser.parse_args()
    quiet_libraries()
    timing.pairs = options.pairs
    start, failed = time.perf_counter(), []
    rows: list[Row] = []
    facts = machine()
    print(
        f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['flags'])}; {facts['photographs']} photographs, "
        f"{facts['weights']} weights\n\n{HEADER}\n{rule()}",
        flush=True,
    )
    for name in options.only:
        try:
            for row in importlib.import_module(f"tests.bench.row_{name}").rows(options.full):
                rows.append(row)
                print(line(row), flush=True)
        except Exception:
            failed.append(name)
            traceback.print_exc()
    facts |= {"load_after": os.getloadavg()[0], "seconds": time.perf_counter() - start, "failed": failed}
    facts["command"] = " ".join(["python", "-m", "tests.bench", *sys.argv[1:]])
    write(options.out, facts, rows)
    print(f"\n{facts['seconds'] / 60:.1f} minutes; load {facts['load_before']:.1f} before, {facts['load_after']:.1f} "
          f"after; {options.out}/bench.md and bench.json", file=sys.stderr)  # fmt: skip
    return 1 if failed else 0


def line(row: Row) -> str:
    """Return a row of the Markdown table."""
    ratios, cpu = row.ratios(), row.ratios("cpu")
    target = f"{'≥' if row.kind == 'faster' else '≤'} {row.target:g} ×"
    reached = "—" if not ratios else "yes" if row.reached else "**no**"
    notes = [*(f"{text}: {'yes' if holds else '**no**'}" for text, holds in row.conditions.items()), row.note]
    if not ratios:
        cells = ["not measured", "", target, reached, ""]
    else:
        a, b = (statistics.median(side.wall for side in sides) for sides in (row.ours, row.theirs))
        spread = f"{statistics.median(ratios):.3g} ({min(ratios):.3g}–{max(ratios):.3g})"
        cells = [spread, f"{statistics.median(cpu):.3g}", target, reached, f"{a:.3g} s, {b:.3g} s"]
    return "| " + " | ".join([row.what, row.against, *cells, "; ".join(notes)]) + " |"


def rule() -> str:
    return "|" + "---|" * (HEADER.count("|") - 1)


def machine() -> dict[str, object]:
    """Return what the ratios depend on: machine, versions and load."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    values = {key.strip(): value.strip() for key, _, value in (entry.partition(":") for entry in text.splitlines())}
    return {
        "cpu": values.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in values.get("flags", "").split()],
        "photographs": "hymenoptera" if (inputs.SHARED / "data" / "hymenoptera").is_dir() else "drawn",
        "weights": "trained" if (inputs.SHARED / "checkpoints").is_dir() else "random",
        "load_before": os.getloadavg()[0],
        "versions": {library: version(library) for library in LIBRARIES},
    }


def write(folder: Path, facts: dict[str, object], rows: list[Row]) -> None:
    """Write the table as Markdown and, with every timing, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    details = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    (folder / "bench.md").write_text("\n".join([HEADER, rule(), *map(line, rows), "", details, ""]))
    plain = {**facts, "rows": [{**asdict(row), "ratios": row.ratios(), "reached": row.reached} for row in rows]}
    (folder / "bench.json").write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sys.exit(main())
