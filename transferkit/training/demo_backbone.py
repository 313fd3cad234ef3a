"""The quickstart's training with one backbone: on drawn symbols, then on a few handwritten digits in four ways."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback

from transferkit.backbones.from_transformers import VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.training.module import TransferModule
from transferkit.training.regimes import count_parameters
from transferkit.training.run_directory import write_metrics
from transferkit.training.symbols import SYMBOLS
from transferkit.training.trainer import make_trainer, quiet_libraries, seed_everything, torch_threads

SIZE = 32  # pixels of a side; the images have 8
DIGITS = 10
PRETRAINING = "pretraining"
SMALL_VIT = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": SIZE,
    "patch_size": 8,
}
BACKBONES: Mapping[str, dict[str, Any]] = {
    "ResNet18": {
        "backbone": "resnet18",
        "weights": "none",
        "preprocessing": {"resize": [SIZE, SIZE], "crop": [SIZE, SIZE]},
    },
    "ViT": {"backbone": VIT, "weights": "none", "architecture": SMALL_VIT},
}
BATCH = {"ResNet18": 64, "ViT": 32}  # a larger network costs more per step
EVALUATION = 800  # cost of testing a module, in images that it is trained on for an epoch


@dataclass(frozen=True)
class Study:
    """What to train, and how long.

    Attributes:
        out: directory to write to.
        n_per_class: training images per digit.
        draws: number of draws of these images.
        drawings: images per symbol.
        pretraining: backbone -> epochs on the symbols.
        few_shot: backbone -> epochs on the digits of a backbone that learns; for a frozen one, the head is solved for.
        seed: of the drawings, the random weights and the draws.
    """

    out: Path
    n_per_class: int = 5
    draws: int = 5
    drawings: int = 48
    pretraining: Mapping[str, int] = field(default_factory=lambda: {"ResNet18": 3, "ViT": 9})
    few_shot: Mapping[str, int] = field(default_factory=lambda: {"ResNet18": 15, "ViT": 30})
    seed: int = 0

    @property
    def symbols(self) -> Path:
        """The folder of the drawn symbols."""
        return self.out / "symbols"

    def extractor(self, backbone: str) -> Path:
        """Return the directory of an exported extractor."""
        return self.out / f"{backbone.lower()}-extractor"

    def folder(self, backbone: str, approach: str) -> Path:
        """Return the directory of an approach; those of the digits have a run per draw in it."""
        return self.out / f"{backbone.lower()}-{approach.replace(', ', '-').replace(' ', '-')}"

    def pretraining_work(self, backbone: str) -> int:
        """Return how many images the training on the symbols takes."""
        return self.pretraining[backbone] * self.drawings * len(SYMBOLS) + EVALUATION

    def epochs(self, backbone: str, regime: str) -> int:
        """Return the number of epochs on the digits; the first solves for the head of a frozen backbone."""
        return 1 if regime == "frozen" else self.few_shot[backbone]

    def draw_work(self, backbone: str, regime: str) -> int:
        """Return how many images the training on one draw of digits takes."""
        learned = 0 if regime == "frozen" else self.epochs(backbone, regime) * self.n_per_class * DIGITS
        return learned + EVALUATION

    def work(self, backbone: str) -> int:
        """Return how many images a backbone's training takes."""
        return self.pretraining_work(backbone) + self.draws * sum(
            self.draw_work(backbone, options["regime"]) for options in self.approaches(backbone).values()
        )

    def approaches(self, backbone: str) -> dict[str, dict[str, Any]]:
        """Return the ways to learn the digits, each with the options of its module."""
        untrained = BACKBONES[backbone]
        transferred = {"backbone": str(self.extractor(backbone))}
        return {
            "from scratch": {**untrained, "regime": "scratch", "lr_head": 3e-3, "lr_backbone": 1e-3},
            "random, frozen": {**untrained, "regime": "frozen"},
            "transferred, frozen": {**transferred, "regime": "frozen"},
            "transferred, fine-tuned": {**transferred, "regime": "full", "lr_head": 3e-3, "lr_backbone": 3e-4},
        }


@dataclass(frozen=True)
class Row:
    """A row of the table; accuracy in [0, 1] on held-out images, mean and standard deviation over the draws.

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


class Step(NamedTuple):
    """Progress of a backbone: what it begins, or the work that it has done."""

    begun: str = ""
    done: float = 0


Report = Callable[[Step], None]
STEPS = 5


def train_backbone(study: Study, backbone: str, report: Report) -> list[Row]:
    """Pretrain a backbone on the symbols, export it, and learn the digits in four ways."""
    quiet_libraries()
    with torch_threads(1):  # on layers this small, several threads mostly wait for each other
        report(Step(f"step 1 of {STEPS}, pretraining on symbols"))
        rows = [pretrain(study, backbone, report)]
        for number, (approach, options) in enumerate(study.approaches(backbone).items(), 2):
            report(Step(f"step {number} of {STEPS}, digits {approach}"))
            rows.append(learn_digits(study, backbone, approach, options, report))
    return rows


def pretrain(study: Study, backbone: str, report: Report) -> Row:
    """Train from scratch on the symbols, test, and export the extractor."""
    start = time.perf_counter()
    seed_everything(study.seed)
    data = ImageDataModule(
        str(study.symbols), val_fraction=0.1, split_seed=study.seed, batch_size=BATCH[backbone], num_workers=0
    )
    module = TransferModule(
        **BACKBONES[backbone], regime="scratch", lr_head=2e-3, lr_backbone=2e-3, weight_decay=0.05, warmup_epochs=0.3,
        seed=study.seed,
    )  # fmt: skip
    epochs = study.pretraining[backbone]
    tell = WorkDone(report, study.pretraining_work(backbone) - EVALUATION, epochs)
    accuracy = fit_and_test(study.folder(backbone, PRETRAINING), module, data, epochs, [tell])
    module.as_extractor().save_pretrained(study.extractor(backbone))
    report(Step(done=EVALUATION))
    return make_row(backbone, PRETRAINING, module, [accuracy], time.perf_counter() - start)


def learn_digits(study: Study, backbone: str, approach: str, options: dict[str, Any], report: Report) -> Row:
    """Learn the digits from a few examples of each, once per draw of them."""
    start = time.perf_counter()
    accuracies = []
    for draw in range(study.draws):
        seed = (study.seed * study.draws + draw) % 2**32  # other draws for each seed of the whole
        seed_everything(seed)
        data = ImageDataModule(
            "digits",
            n_per_class=study.n_per_class,
            split_seed=seed,
            val_fraction=0.05,
            test_fraction=0.5,
            batch_size=25,
        )
        module = TransferModule(**options, seed=seed)
        folder = study.folder(backbone, approach) / str(draw)
        accuracies.append(fit_and_test(folder, module, data, study.epochs(backbone, module.regime)))
        report(Step(done=study.draw_work(backbone, module.regime)))
    return make_row(backbone, approach, module, accuracies, time.perf_counter() - start)


class WorkDone(Callback):
    """Report each batch's share of the work of a fit."""

    def __init__(self, report: Report, work: float, epochs: int) -> None:
        self.report, self.work, self.epochs = report, work, epochs

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Report a batch."""
        self.report(Step(done=self.work / self.epochs / trainer.num_training_batches))


def fit_and_test(
    folder: Path, module: TransferModule, data: ImageDataModule, epochs: int, callbacks: list[Callback] | None = None
) -> float:
    """Fit, test the weights of the last epoch, and return the accuracy in [0, 1]."""
    trainer = make_trainer(
        folder,
        checkpoints=False,
        calibrates=False,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        enable_progress_bar=False,
        callbacks=callbacks,
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    write_metrics(folder, {name: float(value) for name, value in trainer.callback_metrics.items()})
    return float(trainer.callback_metrics["test/acc"])


def make_row(backbone: str, approach: str, module: TransferModule, accuracies: list[float], seconds: float) -> Row:
    """Summarize the draws of one approach."""
    total, learning = count_parameters(module)
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    mean = statistics.fmean(accuracies)
    return Row(backbone, approach, module.backbone.embed_dim, total, learning, mean, std, seconds / len(accuracies))
