"""What distillation without labels is worth: accuracy of a linear probe on photographs that nothing was fitted on.

python -m tests.bench.bench_distill [--seeds 0 1 2] [--epochs 60] [--views 8] [--size 64] [--starts random CIFAR-10]

The teacher is DINOv2-S at 98 pixels, the student a ResNet18. It sees the 244 training photographs of hymenoptera
without their labels, a tenth of them held out for the validation loss. The probe is fitted on the same 244 with labels
and measured on the 153 others. Seeds are of the weights, the views and the order. Intervals are 95 % of a bootstrap
over the 153 photographs, each with its mean over the seeds; ``gain`` is over the network that the student started from,
and ``over CIFAR-10`` over the one that was trained with labels. What is measured is kept in ``--out``, and not measured
again.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.bench.inputs import SHARED, workplace
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import embed
from transferkit.extractor import Extractor
from transferkit.probe import probe_embeddings
from transferkit.training.distilling import distill
from transferkit.training.trainer import quiet_libraries

PHOTOS, TEACHER = SHARED / "data" / "hymenoptera", SHARED / "checkpoints" / "dinov2-small-saliency"
WEIGHTS = {"random": "none", "CIFAR-10": str(SHARED / "checkpoints" / "resnet18-cifar10.safetensors")}
Right = NDArray[np.float64]


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="of the student's images")
    parser.add_argument("--starts", nargs="+", choices=WEIGHTS, default=["random"])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/distill"), help="folder of what is measured")
    parser.add_argument("--set", nargs="*", default=[], help="other options, such as lr=3e-3 or patches=0")
    given = parser.parse_args()
    quiet_libraries()
    more = {name: float(value) if "." in value or "e" in value else int(value)
            for name, value in (part.split("=") for part in given.set)}  # fmt: skip
    options = {"epochs": given.epochs, "views": given.views, "image_size": given.size, **more}
    table = open_images(PHOTOS)
    judged = replace(table, splits=tuple("test" if split == "val" else split for split in table.splits))
    size = {"image_size": given.size}
    right: dict[str, list[Right]] = {}
    with workplace() as place:

        def measure(name: str, seed: int, make: Callable[[], Extractor]) -> None:
            file = given.out / f"{name.replace(' ', '_')}-{seed}.npy"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, probe(make(), judged))
            right.setdefault(name, []).append(np.load(file))
            print(f"{name} {seed}: {100 * right[name][-1].mean():.1f}", file=sys.stderr, flush=True)

        def start_of(weights: str, seed: int) -> Extractor:
            torch.manual_seed(seed)
            return Extractor.from_pretrained("resnet18", weights, preprocessing=size)

        measure("teacher", 0, lambda: Extractor.from_pretrained(TEACHER, preprocessing={"image_size": 98}))
        for start, weights in WEIGHTS.items():
            for seed in given.seeds if start == "random" else [0]:
                measure(start, seed, partial(start_of, weights, seed))
        for start in given.starts:
            for seed in given.seeds:
                measure(f"distilled from {start}", seed, partial(student, place, WEIGHTS[start], seed, options))
    print(f"{'network':24} {'accuracy':>8} {'interval':>14} {'gain':>22} {'over CIFAR-10':>22}   each")
    for name, each in right.items():
        own, start = np.mean(each, 0), name.removeprefix("distilled from ")
        gain = [interval(own - np.mean(right[other], 0)) for other in (start, "CIFAR-10")]
        columns = [f"{100 * own.mean():8.1f}", "{1:6.1f} – {2:5.1f}".format(*interval(own))]
        columns += ["{:+5.1f} ({:+5.1f} – {:+5.1f})".format(*values) if start != name else " " * 22 for values in gain]
        print(f"{name:24} {' '.join(columns)}   {' '.join(f'{100 * run.mean():.1f}' for run in each)}", flush=True)


def student(place: Path, weights: str, seed: int, options: dict[str, Any]) -> Extractor:
    """Distill a student from the training photographs."""
    begin = time.perf_counter(), time.process_time()
    run = distill(
        PHOTOS / "train", teacher=str(TEACHER), student="resnet18", weights=weights, teacher_size=98, seed=seed,
        out=place, on_error="skip", **options,
    )  # fmt: skip
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    said = {name: round(value, 3) for name, value in run.metrics.items()}
    print(f"{said}, {seconds[0]:.0f} s, {seconds[1]:.0f} s of CPU time", file=sys.stderr, flush=True)
    return run.extractor


def probe(extractor: Extractor, table: ImageTable) -> Right:
    """Return for each photograph of test whether the probe is right."""
    found = probe_embeddings(embed(table, extractor, on_error="skip"), coarse_to_fine=True, shots=()).predictions
    return np.array([pred == label for pred, label in zip(found.preds, found.labels, strict=True)], float)


def interval(values: Right, resamples: int = 10_000) -> tuple[float, float, float]:
    """Return the mean in percent, and its 95 % interval by a bootstrap over the photographs."""
    rows = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return 100 * values.mean(), 100 * low, 100 * high


if __name__ == "__main__":
    main()
