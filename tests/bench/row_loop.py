"""`embed` with ResNet18 against the usual loop around torchvision."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights

from tests.bench.inputs import BATCH, photographs, resnet, workplace
from tests.bench.row_embed import embed
from tests.bench.timing import Row, measured


def rows(full: bool) -> Iterator[Row]:
    """Compare with PIL, two loading processes, eager float32, channels first."""
    with workplace() as place:
        folder, network = photographs(place, None if full else 128), resnet(place)
        extractor = network.extractor()
        transform = ResNet18_Weights.DEFAULT.transforms()
        splits = [ImageFolder(str(folder / split), transform, loader=open_rgb) for split in ("train", "val")]

        @torch.inference_mode()
        def loop() -> Tensor:
            loaders = [DataLoader(split, BATCH, num_workers=2) for split in splits]
            return torch.cat([network.plain(pixels) for loader in loaders for pixels, _ in loader])

        cosine = float(torch.cosine_similarity(embed(extractor, folder, place), loop()).min())
        assert cosine > 0.999, f"embeddings differ: cosine {cosine}"
        note = f"{sum(map(len, splits))} images, batch {BATCH}; smallest cosine {cosine:.5f} (PIL's own resize rounds)"
        against = "PIL, DataLoader(2), eager NCHW float32"
        yield measured(
            "embed ResNet18", against, "faster", 1.35, lambda: embed(extractor, folder, place), loop, note=note
        )


def open_rgb(path: str) -> Image.Image:
    """Load as torchvision's default loader does."""
    return Image.open(path).convert("RGB")
