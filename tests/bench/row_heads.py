"""`fit` of a head by gradient steps: eight learning rates to choose from, against one."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.bench.inputs import workplace
from tests.bench.timing import Row, measured
from transferkit.data.datamodule import ImageDataModule
from transferkit.training.head_rates import AUTO
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

NETWORK = {"backbone": "resnet18", "weights": "none", "preprocessing": {"image_size": 32}}
EPOCHS = 20


def rows(full: bool) -> Iterator[Row]:
    """Yield the row of a ResNet18 on digits, whose embeddings are cached before."""
    with workplace() as place:
        chosen = fit(place, "auto").chosen["lr_head"]
        assert torch.equal(head_of(fit(place, chosen)), head_of(fit(place, "auto")))
        what = f"head of ResNet18 on digits, {EPOCHS} epochs, best of {len(AUTO)} rates"
        ours, theirs = lambda: fit(place, "auto"), lambda: fit(place, chosen)
        yield measured(what, "the fit of the best rate alone", "cheaper", 1.3, ours, theirs, note="same weights")


def fit(place: Path, rate: Any) -> TransferModule:
    """Fit as `transferkit fit --model.lr_head RATE`, without imports."""
    with tempfile.TemporaryDirectory(dir=place) as run, torch.random.fork_rng():
        seed_everything(0)
        module, data = TransferModule(**NETWORK, lr_head=rate), ImageDataModule("digits", num_workers=0)
        trainer = make_trainer(Path(run), max_epochs=EPOCHS, enable_progress_bar=False, accelerator="cpu")
        trainer.fit(module, datamodule=data)
        return module


def head_of(module: TransferModule) -> torch.Tensor:
    """Return the weights of the head."""
    assert module.head is not None
    return module.head.weight
