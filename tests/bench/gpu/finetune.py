"""Full fine-tuning of ViT-B/16 in bf16-mixed through the Trainer, against a bare loop over the same batches."""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from tests.bench.gpu.measure import Row, Setting, finish, ratios, say
from tests.bench.gpu.networks import VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

BATCH, STEPS, CLASSES = 128, 20, 8


class Clock(Callback):
    """The time of the steps after the first few, to the end of the device's work."""

    def __init__(self, device: torch.device, skip: int) -> None:
        self.device, self.skip, self.seconds = device, skip, 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == self.skip:
            finish(self.device)
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index + 1 == trainer.num_training_batches:
            finish(self.device)
            self.seconds = time.perf_counter() - self.start


def rows(setting: Setting) -> Iterator[Row]:
    """Yield one row: images per second of both sides; decoding is left out, both have the pixels in memory."""
    batch, steps, skip = (2, 4, 1) if setting.small else (BATCH, STEPS, 6)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(1 if setting.small else 3):
        for kept, side in zip(times, (ours, bare), strict=True):
            kept.append(side(setting, batch, steps, skip))
        say(f"turn {turn}: ours {times[0][-1]:.2f} s, bare {times[1][-1]:.2f} s")
    rate = batch * (steps - skip) / min(times[0])
    note = f"batches of {batch}, {steps - skip} steps, bf16-mixed, AdamW fused; ours {rate:,.0f} images/s"
    yield Row("full fine-tuning ViT-B/16", "a bare loop", ratios(times[1], times[0]), 0.95, note=note)


def network(small: bool) -> TransferModule:
    """ViT-B/16 with random weights, all of it to be trained."""
    seed_everything(0)
    few = {"architecture": {"num_hidden_layers": 1}} if small else {}
    return TransferModule(VIT, "none", regime="full", lr_backbone=1e-5, **few)


def images(count: int) -> tuple[list[Tensor], list[str]]:
    """Noise of the network's size, so that nothing is resized, and classes."""
    generator = torch.Generator().manual_seed(0)
    few = [torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=generator) for _ in range(64)]
    return [few[number % 64] for number in range(count)], [str(number % CLASSES) for number in range(count)]


def ours(setting: Setting, batch: int, steps: int, skip: int) -> float:
    """Return the seconds of the steps, through the Trainer with its logging and the DataLoader."""
    module, clock = network(setting.small), Clock(setting.device, skip)
    pictures, labels = images(batch * steps + CLASSES)
    splits = ["train"] * (batch * steps) + ["val"] * CLASSES
    data = ImageDataModule.from_images(pictures, labels, splits=splits, batch_size=batch, num_workers=0)
    on_gpu = setting.device.type == "cuda"
    with TemporaryDirectory() as folder:
        trainer = make_trainer(
            Path(folder), checkpoints=False, max_epochs=1, limit_val_batches=0, callbacks=[clock],
            accelerator="gpu" if on_gpu else "cpu", precision="bf16-mixed", enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return clock.seconds


def bare(setting: Setting, batch: int, steps: int, skip: int) -> float:
    """Return the seconds of the same steps in a plain loop: normalize, forward, backward, fused AdamW."""
    module = network(setting.small)
    module.set_classes([str(number) for number in range(CLASSES)])
    assert module.head is not None
    model, head, scheme = (
        module.backbone.to(setting.device).train(),
        module.head.to(setting.device),
        module.preprocessing,
    )
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-5, weight_decay=0.01, fused=True)
    pictures, labels = images(batch * steps)
    start = 0.0
    for step in range(steps):
        if step == skip:
            finish(setting.device)
            start = time.perf_counter()
        part = slice(step * batch, (step + 1) * batch)
        host = torch.stack(pictures[part])
        host = host.pin_memory() if setting.device.type == "cuda" else host
        pixels = scheme.normalize(host.to(setting.device, non_blocking=True))
        target = torch.tensor([int(label) for label in labels[part]]).to(setting.device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(setting.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(head(model(pixels)), target)
        loss.backward()
        optimizer.step()
    finish(setting.device)
    return time.perf_counter() - start
