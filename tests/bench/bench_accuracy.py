"""Test accuracy of fine-tuning by our defaults and by other tools, from the same weights, on the same images.

python -m tests.bench.bench_accuracy [--datasets hymenoptera digits-25] [--networks CIFAR-10] [--recipes ...]

`digits-5` has five training images per class, `hymenoptera-25` 25; without a number, all. One image size,
one split per seed (a tenth is val, a fifth is test) and one number of epochs. All train on the same images; ours
chooses its checkpoint on val, which the others do not use: they report their last weights. A tool that is not
installed is left out: `pip install fastai`.
"""

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench.bench_transfer import NETWORKS, OTHERWISE, SIZES, open_dataset, ours
from tests.bench.inputs import workplace
from tests.bench.peers import PEERS, Task
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor import Extractor
from transferkit.training.trainer import quiet_libraries, seed_everything

OURS = {"ours, full": "full", "ours, lp-ft": "lp-ft", "ours, frozen": "frozen"}
"""Recipes of ours, all with defaults alone; `lp-ft` is what finetune.yaml does."""


def main() -> None:
    """Print one line per dataset, network and recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["hymenoptera", "digits-5", "digits-25"])
    parser.add_argument("--networks", nargs="+", default=["CIFAR-10", "DINOv2"], choices=NETWORKS)
    parser.add_argument("--recipes", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    quiet_libraries()
    recipes = [name for name in given.recipes if name in OURS or importlib.util.find_spec(PEERS[name][0])]
    print("dataset, network, recipe, accuracy, minus the first recipe, seconds, accuracy of each draw", flush=True)
    for dataset in given.datasets:
        for network in given.networks:
            measured: dict[str, list[tuple[float, float]]] = {recipe: [] for recipe in recipes}
            with workplace() as place:
                for seed in range(given.seeds):
                    draw = Draw(dataset, network, seed, given.epochs, place)
                    for recipe in recipes:
                        start = time.perf_counter()
                        accuracy = draw.ours(OURS[recipe]) if recipe in OURS else draw.peer(recipe)
                        measured[recipe].append((accuracy, time.perf_counter() - start))
                        print(f"{dataset} {network} {recipe} seed {seed}: {100 * accuracy:.1f}", file=sys.stderr)
            report(dataset, network, measured)


def report(dataset: str, network: str, measured: dict[str, list[tuple[float, float]]]) -> None:
    """Print mean and standard error of each recipe, and of its difference from the first on the same draws."""
    first = [accuracy for accuracy, _ in next(iter(measured.values()))]
    for recipe, draws in measured.items():
        found = [100 * accuracy for accuracy, _ in draws]
        apart = [value - 100 * other for value, other in zip(found, first, strict=True)]
        seconds = statistics.median(seconds for _, seconds in draws)
        each = " ".join(f"{value:.1f}" for value in found)
        line = f"{dataset:12} {network:12} {recipe:21} {spread(found):>11} {spread(apart):>12} {seconds:5.0f}  {each}"
        print(line, flush=True)


def spread(values: list[float]) -> str:
    """Return mean ± standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {error:.1f}"


class Draw:
    """One split of a data set, with its pixels in memory, and the network that every recipe starts from."""

    def __init__(self, dataset: str, network: str, seed: int, epochs: int, place: Path) -> None:
        name, _, shots = dataset.partition("-")
        self.seed, self.epochs = seed, epochs
        size = {"image_size": SIZES[name].get(network, OTHERWISE[name])}
        self.options: dict[str, Any] = {**NETWORKS[network], "preprocessing": size}
        self.root, images = open_dataset(name, place, seed)
        images["n_per_class"] = int(shots) if shots else None
        self.images = {**images, "val_fraction": 0.1, "test_fraction": 0.2}
        seed_everything(0)
        self.extractor = Extractor.from_pretrained(
            self.options["backbone"], self.options.get("weights", "DEFAULT"), None, size
        )
        self.data = ImageDataModule(self.root, **self.images)
        self.data.setup("fit")
        self.pixels = {split: self.read(split) for split in ("train", "test")}

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the preprocessed images `(N, 3, H, W)` of a split and their classes."""
        table = self.data.tables[split]
        pixels = torch.stack([self.extractor.preprocessing(table.read(row)) for row in range(len(table))])
        return pixels, self.data.targets(split)

    def ours(self, regime: str) -> float:
        """Return the test accuracy of `fit` with defaults; a frozen fit has its default of 20 epochs."""
        epochs = 20 if regime == "frozen" else self.epochs
        return ours({**self.options, "regime": regime}, self.root, self.images, epochs, self.seed)

    def peer(self, recipe: str) -> float:
        """Return the test accuracy after another tool has trained."""
        seed_everything(self.seed)
        pixels, target = self.pixels["train"]
        backbone = copy.deepcopy(self.extractor.backbone).train()
        classes = len(self.data.class_names)
        task = Task(backbone, self.extractor.embed_dim, classes, pixels, target, self.epochs, self.seed)
        return accuracy(PEERS[recipe][1](task), *self.pixels["test"])


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: Tensor, target: Tensor) -> float:
    """Return the share of images whose class has the highest logit."""
    preds = torch.cat([model.eval()(batch).argmax(1) for batch in pixels.split(64)])
    return float((preds == target).double().mean())


if __name__ == "__main__":
    main()
