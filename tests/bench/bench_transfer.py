"""Accuracy of the recipes, a probe and a plain loop on held-out images, over draws of the splits.

python -m tests.bench.bench_transfer [--networks CIFAR-10 random DINOv2] [--recipes ...] [--set lr_backbone=1e-3]

Digits (25 training images per class) and hymenoptera (397 photographs, split anew by each seed), 64 or 96 pixels wide
(DINOv2: 56 or 98) so that it ends in minutes; 5 epochs of everything but the frozen fit. ``probe`` and ``frozen`` have
the default splits, and report on the same fifth of the images; everything else validates on a tenth and reports on
another fifth, ``probe's start`` too, which is fitted on the training images alone.
"""

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn import functional as F

from tests.bench.inputs import SHARED, workplace
from transferkit.data.datamodule import ImageDataModule
from transferkit.embed import cached_features
from transferkit.extractor import Extractor
from transferkit.probe import ProbeResult, probe_embeddings
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, quiet_libraries, seed_everything

EPOCHS = 5
SIZES = {"digits": {"DINOv2": 56}, "hymenoptera": {"DINOv2": 98}}
OTHERWISE = {"digits": 64, "hymenoptera": 96}
NETWORKS: dict[str, dict[str, Any]] = {
    "CIFAR-10": {"backbone": "resnet18", "weights": str(SHARED / "checkpoints" / "resnet18-cifar10.safetensors")},
    "random": {"backbone": "resnet18", "weights": "none"},
    "DINOv2": {"backbone": str(SHARED / "checkpoints" / "dinov2-small-saliency")},
    "EfficientNet": {"backbone": str(SHARED / "checkpoints" / "efficientnet-lite0")},
}
FINETUNE = yaml.safe_load((Path(__file__).parents[2] / "configs" / "finetune.yaml").read_text())
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # options of the model, of the data, epochs
    "frozen": ({"regime": "frozen"}, {}, 20),
    "full": ({"regime": "full"}, {}, EPOCHS),
    "lora": ({"regime": "lora"}, {}, EPOCHS),  # DINOv2 alone has linear layers in its blocks
    "probe, full": ({"regime": "full", "head": "probe"}, {}, EPOCHS),
    "finetune.yaml": (
        {k: v for k, v in FINETUNE["model"].items() if k != "backbone"},
        FINETUNE.get("data", {}),
        EPOCHS,
    ),
}


def main() -> None:
    """Print and write one line per dataset, network and recipe."""
    usual = [recipe for recipe in RECIPES if recipe not in ("frozen", "lora")]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", nargs="+", default=list(OTHERWISE))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS)[:3])
    parser.add_argument("--recipes", nargs="+", default=["probe", "frozen", "probe's start", *usual, "plain AdamW"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="options of the model for every recipe of ours")
    parser.add_argument("--data", nargs="*", default=[], help="options of the data for every recipe of ours")
    given = parser.parse_args()
    more, data = ({k: yaml.safe_load(v) for k, v in (p.split("=") for p in part)} for part in (given.set, given.data))
    quiet_libraries()
    for dataset in given.datasets:
        for network in given.networks:
            results: dict[str, list[float]] = {recipe: [] for recipe in given.recipes}
            with workplace() as place:  # one for all draws, so that they share the features
                for seed in range(given.seeds):
                    for recipe, accuracy in measure(dataset, network, given.recipes, seed, more, data, place):
                        results[recipe].append(accuracy)
                        print(f"{dataset} {network} {recipe} seed {seed}: {100 * accuracy:.1f}", file=sys.stderr)
            for recipe, found in results.items():
                error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
                each = " ".join(f"{100 * value:.1f}" for value in found)
                mean = 100 * statistics.fmean(found)
                print(f"{dataset:12} {network:12} {recipe:14} {mean:5.1f} ± {100 * error:.1f}   {each}", flush=True)


def measure(
    dataset: str, network: str, recipes: list[str], seed: int, more: dict[str, Any], data: dict[str, Any], place: Path
) -> Iterator[tuple[str, float]]:
    """Return the accuracy of each recipe on the test images of one draw."""
    size = {"image_size": SIZES[dataset].get(network, OTHERWISE[dataset])}
    options = {**NETWORKS[network], "preprocessing": size}
    root, images = open_dataset(dataset, place, seed)
    halves = {"val_fraction": 0.1, "test_fraction": 0.2}
    seed_everything(0)
    extractor = Extractor.from_pretrained(options["backbone"], options.get("weights", "DEFAULT"), None, size)
    if options.get("weights") == "none":  # one random network, that of seed 0, for every recipe and draw
        extractor.save_pretrained(place / "extractor", overwrite=True)
        options = {"backbone": str(place / "extractor")}
    drawn = ImageDataModule(root, **images, **halves)
    drawn.setup("fit")
    start = probe_of(extractor, drawn).start
    start.save(place / "start.safetensors")
    for recipe in recipes:
        if recipe == "probe":
            default = ImageDataModule(root, **images)
            default.setup("fit")
            yield recipe, probe_of(extractor, default).report["linear"]["top1"]
        elif recipe == "probe's start":
            test = cached_features(extractor, drawn.tables["test"])
            right = start.logits(test.embedding).argmax(1) == drawn.targets("test")
            yield recipe, float(right.double().mean())
        elif recipe == "plain AdamW":
            yield recipe, plain_adamw(extractor, drawn, seed)
        else:
            model, further, epochs = RECIPES[recipe]
            model = {**model, "head": str(place / "start.safetensors")} if "head" in model else model
            splits = {} if recipe == "frozen" else halves
            yield recipe, ours(options | model | more, root, images | splits | further | data, epochs, seed)


def probe_of(extractor: Extractor, data: ImageDataModule) -> ProbeResult:
    """Probe the splits of the data."""
    features = cached_features(extractor, data.table)
    return probe_embeddings(features, shots=(1,), few_shot_seeds=(0,))


def open_dataset(dataset: str, place: Path, seed: int) -> tuple[str, dict[str, Any]]:
    """Return root and options of the data."""
    options: dict[str, Any] = {"split_seed": seed, "num_workers": 0}
    if dataset == "digits":
        return "digits", options | {"n_per_class": 25}
    folder = SHARED / "data" / "hymenoptera"
    files = sorted(path.relative_to(folder) for path in folder.glob("*/*/*.jpg"))
    with (place / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((path, path.parent.name) for path in files)])
    return str(place / "images.csv"), options | {"image_root": str(folder)}


def ours(model: dict[str, Any], root: str, data: dict[str, Any], epochs: int, seed: int) -> float:
    """Return the test accuracy of the best checkpoint of a fit."""
    with tempfile.TemporaryDirectory() as run:
        seed_everything(seed)
        module, datamodule = TransferModule(**model, seed=seed), ImageDataModule(root, **data)
        trainer = make_trainer(Path(run), max_epochs=epochs, enable_progress_bar=False, accelerator="cpu")
        trainer.fit(module, datamodule=datamodule)
        trainer.test(module, datamodule=datamodule, ckpt_path=f"{run}/checkpoints/best.ckpt", verbose=False)
        return float(trainer.callback_metrics["test/acc"])


def plain_adamw(extractor: Extractor, data: ImageDataModule, seed: int, rate: float = 1e-3) -> float:
    """Run the usual loop: all weights, one learning rate, no schedule; return the accuracy of the last epoch."""
    torch.manual_seed(seed)
    state = {key: value.clone() for key, value in extractor.backbone.state_dict().items()}
    model = nn.Sequential(extractor.backbone.requires_grad_(), nn.Linear(extractor.embed_dim, len(data.class_names)))
    pixels, targets = {}, {}
    for split in ("train", "test"):
        table = data.tables[split]
        pixels[split] = torch.stack([extractor.preprocessing(table.read(row)) for row in range(len(table))])
        targets[split] = data.targets(split)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(targets["train"])).split(32):
            if len(rows) > 1:
                optimizer.zero_grad()
                F.cross_entropy(model(pixels["train"][rows]), targets["train"][rows]).backward()
                optimizer.step()
    model.eval()
    with torch.inference_mode():
        preds = torch.cat([model(batch).argmax(1) for batch in pixels["test"].split(64)])
    extractor.backbone.load_state_dict(state)
    return float((preds == targets["test"]).double().mean())


if __name__ == "__main__":
    main()
