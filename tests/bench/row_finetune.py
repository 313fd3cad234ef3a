"""Images per second of fine-tuning against a bare PyTorch loop with the same model, batches and optimizer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from tests.bench.inputs import BATCH, Network, photographs, resnet, vit_small, workplace
from tests.bench.timing import Row, measured
from transferkit.backbones import Backbone
from transferkit.data.batches import EpochBatchSampler
from transferkit.data.datamodule import ImageDataModule
from transferkit.images.decoding import read_image
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything
from transferkit.training.trainer_options import automatic_precision

RATE = 1e-4
WITHIN = {"32-true": 1e-2, "bf16-mixed": 0.1}  # largest difference of the weights afterwards, relative to their length
COUNTS = {resnet: 64, vit_small: 32}


def rows(full: bool) -> Iterator[Row]:
    """Train and validate on both sides; ours writes no checkpoints, like the loop. All loops compute in float32."""
    for make, count in COUNTS.items():
        with workplace() as place:
            folder, network = photographs(place, None if full else count), make(place)
            epochs = 3 if full else 1
            yield row_of("full", network, folder, epochs, 1.2)
            precision = automatic_precision("cpu", "full")
            if precision != "32-true":
                yield row_of("full", network, folder, epochs, 1.2, precision)
            if make is resnet:
                yield row_of("partial", network, folder, 3, 1.5)


def row_of(regime: str, network: Network, folder: Path, epochs: int, target: float, precision: str = "32-true") -> Row:
    """Time one regime. The frozen stages' output is in the cache, from the check, as it is from the second epoch on."""

    def ours() -> TransferModule:
        seed_everything(0)
        options = {**network.options, "regime": regime, "lr_head": RATE, "lr_backbone": RATE, "warmup_epochs": 0}
        module, data = TransferModule(**options), ImageDataModule(str(folder), batch_size=BATCH)
        with tempfile.TemporaryDirectory(dir=folder.parent) as run:
            silent = {"enable_progress_bar": False, "accelerator": "cpu", "precision": precision}
            make_trainer(Path(run), checkpoints=False, max_epochs=epochs, **silent).fit(module, datamodule=data)
        return module

    def theirs() -> Backbone:
        return bare_loop(TransferModule(**network.options), folder, epochs, regime == "partial")

    ends = [
        torch.cat([p.detach().flatten() for p in backbone.model.parameters()])
        for backbone in (ours().backbone, theirs())
    ]
    error = float((ends[0] - ends[1]).norm() / ends[1].norm())
    assert error < WITHIN[precision], f"weights differ by {error:.1e}"
    images = len(list(folder.glob("train/*/*.jpg")))
    note = f"{images} images, {epochs} epochs, batch {BATCH}, validation too; weights afterwards within {error:.0e}"
    name = "float32" if precision == "32-true" else f"precision auto ({precision})"
    what, against = f"{regime} fine-tuning {network.name}, {name}", "a bare float32 loop, same model and batches"
    return measured(what, against, "faster", target, ours, theirs, note=note)


def bare_loop(module: TransferModule, folder: Path, epochs: int, last_only: bool) -> Backbone:
    """Train with AdamW and a cosine schedule over torchvision's ImageFolder, with the batches of transferkit.

    Args:
        module: with the network.
        folder: train and val.
        epochs: of training.
        last_only: whether only the last stage learns, the others being in eval mode.
    """
    scheme, model = module.preprocessing, module.backbone
    train, val = (
        ImageFolder(str(folder / split), loader=lambda path: scheme(read_image(path))) for split in ("train", "val")
    )
    seed_everything(0)
    head = nn.Linear(model.embed_dim, 2)
    model.eval().requires_grad_(False)
    learning = model.model.get_submodule("layer4") if last_only else model
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
    return model
