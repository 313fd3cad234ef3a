"""Backbones small enough to train in a test, and a fit on them."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from transferkit.data.datamodule import ImageDataModule
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

RESNET: dict[str, Any] = {
    "backbone": "resnet18",
    "weights": "none",
    "preprocessing": {"resize": [32, 32], "crop": [32, 32]},
}
VIT: dict[str, Any] = {
    "backbone": "google/vit-base-patch16-224-in21k",
    "weights": "none",
    "architecture": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    },
}


def options(section: str, values: dict[str, Any]) -> list[str]:
    """Values as command line options of a section."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [part for key, text in texts.items() for part in (f"--{section}.{key}", text)]


class Cut(Callback):
    """Write a checkpoint in the middle of the first epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def fit(
    run: Path, root: Path | str, model: dict[str, Any], seed: int = 0, epochs: int = 2, **data: Any
) -> tuple[TransferModule, ImageDataModule, Trainer]:
    """Train through the Python interface; what was trained, on what, by what."""
    seed_everything(seed)
    module = TransferModule(**{"seed": seed, **model})
    datamodule = ImageDataModule(str(root), **{"batch_size": 4, "num_workers": 0, **data})
    trainer = make_trainer(run, max_epochs=epochs, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(module, datamodule=datamodule)
    return module, datamodule, trainer
