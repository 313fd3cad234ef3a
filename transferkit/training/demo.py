"""The quickstart: what transfer learning gains on real digits, in minutes and without a network."""

import csv
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transferkit.backbones.from_transformers import VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.runtime.files import atomic_path, discard
from transferkit.training.module import TransferModule
from transferkit.training.regimes import count_parameters
from transferkit.training.run_directory import write_metrics
from transferkit.training.trainer import make_trainer, seed_everything, torch_threads

log = logging.getLogger(__name__)

SIZE = 32
EPOCHS = {"frozen": 60, "full": 30, "scratch": 30}  # on the few examples, by regime
KNOWN, NEW = ["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]
PRETRAINING = "pretraining"
SMALL_VIT = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": SIZE,
    "patch_size": 8,
}
BACKBONES: dict[str, dict[str, Any]] = {
    "ResNet18": {
        "backbone": "resnet18",
        "weights": "none",
        "preprocessing": {"resize": [SIZE, SIZE], "crop": [SIZE, SIZE]},
    },
    "ViT": {"backbone": VIT, "weights": "none", "architecture": SMALL_VIT},
}
PARTS = ("extractor", "pretraining", "from-scratch", "random-frozen", "transferred-frozen", "transferred-fine-tuned")


@dataclass(frozen=True)
class Row:
    """A row of the table; accuracy in [0, 1] on held-out digits, mean and standard deviation over the draws.

    The standard deviation of a single draw is None.
    """

    backbone: str
    approach: str
    embed_dim: int
    parameters: int
    learning: int
    accuracy: float
    std: float | None
    seconds: float


def run(out: Path, n_per_class: int, seeds: int, epochs: Mapping[str, int]) -> list[Row]:
    """Train from scratch on the digits 0 to 4, export, and learn 5 to 9 in four ways, for each backbone.

    Args:
        out: directory to write to; the results of an earlier quickstart in it are replaced.
        n_per_class: training examples per class of 5 to 9.
        seeds: number of draws of these examples.
        epochs: backbone's name -> epochs of the training from scratch.

    Raises:
        UserError: the directory cannot be written, or holds other files.
    """
    clear(out)
    with torch_threads(1):  # on layers this small, several threads mostly wait for each other
        rows = train_all(out, n_per_class, seeds, epochs)
    with atomic_path(out / "table.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return rows


def train_all(out: Path, n_per_class: int, seeds: int, epochs: Mapping[str, int]) -> list[Row]:
    """Train and test every approach with every backbone; the arguments are those of :func:`run`."""
    rows: list[Row] = []
    steps = len(BACKBONES) * (len(PARTS) - 1)
    for name, untrained in BACKBONES.items():
        step = f"step %d of {steps}: {name}, %s"
        log.info(step, len(rows) + 1, f"from scratch on the digits 0 to 4, {epochs[name]} epochs")
        extractor = out / f"{name.lower()}-extractor"
        rows.append(pretrain(out / f"{name.lower()}-{PRETRAINING}", name, untrained, epochs[name], extractor))
        transferred = {"backbone": str(extractor)}
        approaches: dict[str, dict[str, Any]] = {
            "from scratch": {**untrained, "regime": "scratch", "lr_head": 3e-3, "lr_backbone": 1e-3},
            "random, frozen": {**untrained, "regime": "frozen", "lr_head": 1e-2},
            "transferred, frozen": {**transferred, "regime": "frozen", "lr_head": 1e-2},
            "transferred, fine-tuned": {**transferred, "regime": "full", "lr_head": 3e-3, "lr_backbone": 3e-4},
        }
        for approach, options in approaches.items():
            log.info(step, len(rows) + 1, f"{approach}: digits 5 to 9, {n_per_class} examples each, {seeds} times")
            folder = out / f"{name.lower()}-{approach.replace(', ', '-').replace(' ', '-')}"
            rows.append(learn_new(folder, name, approach, options, n_per_class, seeds))
    return rows


def clear(out: Path) -> None:
    """Make the directory, and remove the results of an earlier quickstart in it.

    Raises:
        UserError: the directory cannot be written, or holds files that a quickstart does not write.
    """
    ours = {"table.csv", *(f"{name.lower()}-{part}" for name in BACKBONES for part in PARTS)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(path for path in out.iterdir() if not path.name.isdigit())  # runs of quickstart.yaml stay
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another `out`") from error
    for path in found:
        if path.name not in ours and not path.name.endswith(".tmp"):
            raise UserError(f"{out} holds {path.name!r}, which a quickstart does not write; give another `out`")
    for path in found:
        discard(path)


def best(rows: Sequence[Row], backbone: str, transferred: bool) -> Row:
    """Return the most accurate approach to the digits 5 to 9, with or without transfer."""
    approaches = [row for row in rows if row.backbone == backbone and row.approach != PRETRAINING]
    return max((r for r in approaches if r.approach.startswith("transferred") == transferred), key=lambda r: r.accuracy)


def pretrain(folder: Path, name: str, options: dict[str, Any], epochs: int, extractor: Path) -> Row:
    """Train from scratch on the digits 0 to 4, test, and export the extractor."""
    start = time.perf_counter()
    seed_everything(0)
    data = ImageDataModule("digits", classes=KNOWN, test_fraction=0.2, augmentation="light")
    module = TransferModule(**options, regime="scratch", lr_head=1e-3, lr_backbone=1e-3, weight_decay=0.05, dropout=0.5)
    accuracy = fit_and_test(folder, module, data, epochs)
    module.as_extractor().save_pretrained(extractor)
    return make_row(name, PRETRAINING, module, [accuracy], time.perf_counter() - start)


def learn_new(folder: Path, name: str, approach: str, options: dict[str, Any], n_per_class: int, seeds: int) -> Row:
    """Learn the digits 5 to 9 from a few examples, once per draw of them."""
    start = time.perf_counter()
    accuracies = []
    for seed in range(seeds):
        seed_everything(seed)
        data = ImageDataModule(
            "digits", classes=NEW, n_per_class=n_per_class, split_seed=seed, test_fraction=0.5, batch_size=16
        )
        module = TransferModule(**options, seed=seed)
        accuracies.append(fit_and_test(folder / str(seed), module, data, EPOCHS[module.regime]))
    return make_row(name, approach, module, accuracies, time.perf_counter() - start)


def fit_and_test(folder: Path, module: TransferModule, data: ImageDataModule, epochs: int) -> float:
    """Fit, test the weights of the last epoch, and return the accuracy in [0, 1]."""
    trainer = make_trainer(
        folder, checkpoints=False, max_epochs=epochs, check_val_every_n_epoch=epochs, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    write_metrics(folder, {name: float(value) for name, value in trainer.callback_metrics.items()})
    return float(trainer.callback_metrics["test/acc"])


def make_row(name: str, approach: str, module: TransferModule, accuracies: list[float], seconds: float) -> Row:
    """Summarize the draws of one approach."""
    total, learning = count_parameters(module)
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    mean = statistics.fmean(accuracies)
    return Row(name, approach, module.backbone.embed_dim, total, learning, mean, std, seconds / len(accuracies))
