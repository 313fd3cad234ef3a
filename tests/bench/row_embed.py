"""`embed`, a folder of JPEGs to Parquet, against the forward pass alone on tensors in memory."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.inputs import BATCH, Network, check_same, photographs, resnet, tensors, vit_base, vit_small, workplace
from tests.bench.timing import Row, measured
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.embed import describe, write_embeddings
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Precision

TARGETS = {vit_base: (32, 0.92), vit_small: (64, 0.92), resnet: (160, 0.80)}


def rows(full: bool) -> Iterator[Row]:
    """Yield a row per network; at full size ResNet18 also against transferkit's own, faster forward pass."""
    for make, (count, target) in TARGETS.items():
        with workplace() as place:
            folder = photographs(place, None if full else count)
            yield from measure(make(place), folder, place, target, full)


def measure(network: Network, folder: Path, place: Path, target: float, full: bool) -> Iterator[Row]:
    """Time both sides with weights in memory; ours opens the folder, hashes the weights and writes the file."""
    extractor = network.extractor()
    memory = tensors(sorted(folder.rglob("*.jpg")), extractor)

    @torch.inference_mode()
    def bare() -> Tensor:
        return torch.cat([network.plain(pixels) for pixels in memory])

    same = check_same(embed(extractor, folder, place), bare())

    def ours() -> Tensor:
        return embed(extractor, folder, place)

    note = f"{sum(map(len, memory))} images, float32; theirs in batches of {BATCH}; {same}"
    yield measured(f"embed {network.name}", "bare forward pass in memory", "faster", target, ours, bare, note=note)
    if full and network.name == "ResNet18":
        table = open_images(folder)
        pixels = [extractor.preprocessing.resize_crop(table.read(row)) for row in range(len(table))]
        batches, forward = torch.stack(pixels).split(BATCH), extractor.forward()

        def whole() -> list[Tensor]:
            return [forward(part) for part in batches]

        against = "the same, BatchNorm folded and channels last"
        yield measured(f"embed {network.name}", against, "faster", target, ours, whole, note=note)


def embed(extractor: Extractor, folder: Path, place: Path, precision: Precision = "32") -> Tensor:
    """Embed as the command does, to a new file; return the embeddings."""
    table, forward = open_images(folder), extractor.forward(precision)
    out = place / "embeddings.parquet"
    write_embeddings(extractor, table, out, describe(extractor, table, forward=forward), forward)
    found = Embeddings.load(out).embedding
    out.unlink()
    return found
