"""Images per second of fine-tuning against a bare PyTorch loop with the same model, batches and optimizer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from tests.bench.inputs import BATCH, Network, photographs, resnet, workplace
from tests.bench.timing import Row, in_turns
from transferkit.data.batches import EpochBatchSampler
from transferkit.data.datamodule import ImageDataModule
from transferkit.images.decoding import read_image
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

RATE = 1e-4


def rows(full: bool) -> Iterator[Row]:
    """Train and validate on both sides; ours writes no checkpoints, like the loop."""
    with workplace() as place:
        folder, network = photographs(place, None if full else 64), resnet(place)
        yield row_of("full", network, folder, 3 if full else 1, 0.95)
        yield row_of("partial", network, folder, 3, 1.5)


def row_of(regime: str, network: Network, folder: Path, epochs: int, target: float) -> Row:
    """Time one regime. The frozen stages' output is in the cache, from the check, as it is from the second epoch on."""

    def ours() -> TransferModule:
        seed_everything(0)
        options = {**network.options, "regime": regime, "lr_head": RATE, "lr_backbone": RATE, "warmup_epochs": 0}
        module, data = TransferModule(**options), ImageDataModule(str(folder), batch_size=BATCH)
        with tempfile.TemporaryDirectory(dir=folder.parent) as run:
            silent = {"enable_progress_bar": False, "accelerator": "cpu"}
            make_trainer(Path(run), checkpoints=False, max_epochs=epochs, **silent).fit(module, datamodule=data)
        return module

    def theirs() -> nn.Module:
        return bare_loop(TransferModule(**network.options), folder, epochs, regime == "partial")

    ends = [
        torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (ours().backbone.model, theirs())
    ]
    error = float((ends[0] - ends[1]).norm() / ends[1].norm())
    assert error < 1e-2, f"weights differ by {error:.1e}"
    images = len(list(folder.glob("train/*/*.jpg")))
    note = f"{images} images, {epochs} epochs, batch {BATCH}, validation too; weights afterwards within {error:.0e}"
    what, against = f"{regime} fine-tuning ResNet18", "a bare PyTorch loop, same model and batches"
    return Row(what, against, "faster", target, *in_turns(ours, theirs), note=note)


def bare_loop(module: TransferModule, folder: Path, epochs: int, last_only: bool) -> nn.Module:
    """Train with AdamW and a cosine schedule over torchvision's ImageFolder, with the batches of transferkit.

    Args:
        module: with the network.
        folder: train and val.
        epochs: of training.
        last_only: whether only the last stage learns, the others being in eval mode.
    """
    scheme = Preprocessing.imagenet()
    train, val = (
        ImageFolder(str(folder / split), loader=lambda path: scheme(read_image(path))) for split in ("train", "val")
    )
    seed_everything(0)
    head = nn.Linear(512, 2)
    model: Any = module.backbone.model.eval().requires_grad_(False)
    learning: nn.Module = model.layer4 if last_only else model
    learning.requires_grad_(True)
    decayed = [p for p in (*learning.parameters(), *head.parameters()) if p.ndim > 1]
    others = [p for p in (*learning.parameters(), *head.parameters()) if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    order = EpochBatchSampler(len(train), BATCH, shuffle=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(order))
    for epoch in range(epochs):
        order.set_epoch(epoch)
        learning.train()
        for pixels, target in DataLoader(train, batch_sampler=[rows for rows, _ in order.batches()], num_workers=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(model(pixels)), target).backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            for pixels, _ in DataLoader(val, BATCH, num_workers=1):
                head(model(pixels))
    found: nn.Module = model
    return found
