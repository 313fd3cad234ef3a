"""What a GPU is kept busy with: `make bench-gpu`, or python3 -m tests.bench.gpu [--only NAME ...] [--small].

Each row is a ratio, or seconds, measured in turns in one run; it ends in about three minutes on an H100, needs no
network and no weights, and writes runs/bench_gpu.json. `--small --device cpu` tries the code where there is no GPU.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tests.bench.gpu.measure import Row, Setting, say
from transferkit.runtime.cores import cores
from transferkit.training.trainer import quiet_libraries

NAMES = ("files", "finetune", "forward", "search", "probe")
LIBRARIES = ("torch", "torchvision", "transformers", "lightning", "numpy", "pillow", "triton")


def main() -> int:
    """Measure, print and write; return 1 if a row raised an error or missed its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the code")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=1_281_167, help="of the probe")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu.json"))
    options = parser.parse_args()
    quiet_libraries()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench-gpu needs a CUDA device; --small --device cpu tries the code")
    setting = Setting(torch.device(options.device), options.small, options.rows)
    facts = machine(setting.device)
    say(", ".join(f"{name} {value}" for name, value in facts.items() if name != "versions"))
    start, rows, failed = time.perf_counter(), list[Row](), list[str]()
    for name in options.only:
        begun = time.perf_counter()
        try:
            for row in importlib.import_module(f"tests.bench.gpu.{name}").rows(setting):
                rows.append(row)
                say(row.line())
                write(options.out, {**facts, "seconds": time.perf_counter() - start, "failed": failed}, rows)
        except Exception:  # the other rows are measured all the same
            failed.append(name)
            traceback.print_exc()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"{name}: {time.perf_counter() - begun:.0f} s")
    facts |= {"seconds": time.perf_counter() - start, "failed": failed}
    write(options.out, facts, rows)
    say(f"\n{facts['device']}, {facts['cores']} cores, {facts['seconds']:.0f} s, failed: {', '.join(failed) or 'none'}")
    say("| what | against | value | target | reached | note |\n|---|---|---:|---:|---|---|")
    say("\n".join(row.line() for row in rows))
    return 1 if failed else 0


def machine(device: torch.device) -> dict[str, object]:
    """Return what the figures depend on."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"device": name, "cuda": torch.version.cuda, "cores": cores(), "date": date, "versions": versions}


def write(place: Path, facts: dict[str, object], rows: list[Row]) -> None:
    """Write what has been measured so far."""
    place.parent.mkdir(parents=True, exist_ok=True)
    plain = [{**asdict(row), "value": row.value, "reached": row.reached} for row in rows]
    place.write_text(json.dumps({**facts, "rows": plain}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
