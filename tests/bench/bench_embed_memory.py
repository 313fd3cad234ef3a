"""Peak memory and speed of `transferkit embed` at 1k, 10k and 100k images; neither should change.

python -m tests.bench.bench_embed_memory [--counts 1000 10000 100000]

A tiny ViT on images of 32 x 32 pixels, so that costs that grow with their number are visible. The images are hard
links to a hundred files. Memory is the peak resident set of a separate process (MiB, from getrusage).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.backbones.families import save

RUN = """
import resource, sys
from transferkit import cli
status = cli.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(status)
"""


def main() -> None:
    """Print a row per number of images, and the difference between smallest and largest peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    counts = parser.parse_args().counts
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save("vit", root / "vit")
        peaks, rates = zip(*(measure(root, count) for count in counts), strict=True)
    for count, peak, rate in zip(counts, peaks, rates, strict=True):
        print(f"{count:>7,} images: peak {peak} MiB, {rate:.0f} images/s")
    print(f"peaks differ by {max(peaks) - min(peaks)} MiB")


def measure(root: Path, count: int) -> tuple[int, float]:
    """Return peak resident memory in MiB, and images per second, of one run."""
    write_images(root / f"{count}", count)
    return run(root, count)


def run(root: Path, count: int) -> tuple[int, float]:
    """Run :func:`measure` on existing images; the table of an earlier run is replaced."""
    images = root / f"{count}"
    Path(f"{images}.parquet").unlink(missing_ok=True)
    command = [sys.executable, "-c", RUN, "embed", str(images), "--extractor", str(root / "vit"), "--json"]
    environment = os.environ | {"TRANSFERKIT_CACHE": str(root / "cache")}
    command += ["--out", f"{images}.parquet"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result, peak = done.stdout.rsplit("}", 1)
    return int(peak), json.loads(result + "}")["images_per_second"]


def write_images(folder: Path, count: int) -> None:
    """Write images of 32 x 32 pixels into ten class folders."""
    noise = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class {number % 10}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < 100:
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        else:
            original = number % 100
            path.hardlink_to(folder / f"class {original % 10}" / f"{original:06d}.png")


if __name__ == "__main__":
    main()
