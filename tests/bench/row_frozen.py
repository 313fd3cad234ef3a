"""`fit` on a frozen backbone, 50 epochs, against one raw pass over the same images."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.inputs import BATCH, Network, check_same, photographs, resnet, vit_small, workplace
from tests.bench.row_embed import embed
from tests.bench.timing import Row, measured
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor import Extractor
from transferkit.images.decoding import read_image
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

EPOCHS = 50


def rows(full: bool) -> Iterator[Row]:
    """Yield the rows of a ViT and ResNet18."""
    for make, target, count in ((vit_small, 1.15, 128), (resnet, 1.3, 192)):
        with workplace() as place:
            yield from measure(make(place), photographs(place, None if full else count), place, target, full)


def measure(network: Network, folder: Path, place: Path, target: float, full: bool) -> Iterator[Row]:
    """Compare with the usual pass; at full size also with transferkit's own `embed`, which is faster."""
    extractor, paths = network.extractor(), sorted(folder.rglob("*.jpg"))
    same = check_same(embed(extractor, folder, place), raw_pass(network, extractor, paths))
    fit(network, folder, place, 1)
    sides: dict[str, Callable[[], object]] = {
        "one raw pass: decode, preprocess, forward": lambda: raw_pass(network, extractor, paths),
    }
    if full:
        sides["one pass of our own embed"] = lambda: embed(extractor, folder, place)

    def ours() -> float:
        return fit(network, folder, place, EPOCHS)

    for against, other in sides.items():
        what, note = f"frozen fit {network.name}, {EPOCHS} epochs", f"{len(paths)} images, {same}"
        yield measured(what, against, "cheaper", target, ours, other, note=note)


def fit(network: Network, folder: Path, place: Path, epochs: int) -> float:
    """Fit as `transferkit fit` with an empty cache and a new run, without imports; return the highest `val/acc`."""
    with tempfile.TemporaryDirectory(dir=place) as run, torch.random.fork_rng(), workplace():
        seed_everything(0)
        module, data = TransferModule(**network.options), ImageDataModule(str(folder))
        trainer = make_trainer(Path(run), max_epochs=epochs, enable_progress_bar=False, accelerator="cpu")
        trainer.fit(module, datamodule=data)
        return float(trainer.checkpoint_callbacks[-1].state_dict()["highest"])


@torch.inference_mode()
def raw_pass(network: Network, extractor: Extractor, paths: list[Path]) -> Tensor:
    """Run the library's network batch by batch."""
    results = []
    for start in range(0, len(paths), BATCH):
        pixels = torch.stack([extractor.preprocessing(read_image(path)) for path in paths[start : start + BATCH]])
        results.append(network.plain(pixels))
    return torch.cat(results)
