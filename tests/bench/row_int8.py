"""The forward pass in int8 against our own bfloat16 and float32, on tensors in memory; how near it stays."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.inputs import Network, photographs, resnet, vit_small, workplace
from tests.bench.timing import Row, in_turns
from transferkit.data.image_table import open_images
from transferkit.embed.samples import quantization_of
from transferkit.extractor.engine import missing
from transferkit.extractor.forward import Forward
from transferkit.extractor.quantization import nncf_version
from transferkit.similarity.compare import knn_overlap

BATCH = 16
TARGETS = {resnet: (2.3, 0.9990), vit_small: (2.0, 0.9980)}  # of the ratio to bfloat16, and of the mean cosine
COUNT = 128


def rows(full: bool) -> Iterator[Row]:
    """Yield two rows per network: against bfloat16 and float32. Ranges are measured on 64 images of train."""
    for make, (faster, near) in TARGETS.items():
        with workplace() as place:
            network, folder = make(place), photographs(place, None if full else COUNT)
            if missing("openvino") or nncf_version() is None:
                note = "the extra int8 is not installed"
                yield Row(f"{network.name}, int8", "bfloat16", "faster", faster, [], [], note=note)
            else:
                yield from measure(network, folder, faster, near)


def measure(network: Network, folder: Path, faster: float, near: float) -> Iterator[Row]:
    """One core each, as in `embed`; compared on images of val, which no range was measured on."""
    extractor, table = network.extractor(), open_images(folder)
    val = [row for row, split in enumerate(table.splits) if split == "val"]
    pixels = torch.stack([extractor.preprocessing.resize_crop(table.read(row)) for row in val])
    quantization = quantization_of(extractor, table)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        int8 = extractor.run_with("openvino", "int8", quantization).forward()
        plain = extractor.run_with("torch").forward()
        found, right = run(int8, pixels), run(plain, pixels)
        cosine = torch.cosine_similarity(found, right)
        shared = knn_overlap(found, right, 10)
        conditions = {
            f"cosine to float32 {cosine.mean():.4f} ≥ {near:.4f}, least {cosine.min():.4f}": float(cosine.mean())
            >= near,
            f"neighbors shared at 10: {shared:.3f} ≥ 0.9": shared >= 0.9,
        }
        others = {"bfloat16": extractor.forward("bf16"), "float32": plain}
        run(others["bfloat16"], pixels[:BATCH])  # the other two are warm
        for against, other in others.items():
            ours, theirs = in_turns(lambda: run(int8, pixels), lambda other=other: run(other, pixels))  # type: ignore[misc]
            note = f"{len(pixels)} images, one core"
            yield Row(f"{network.name}, int8", against, "faster", faster, ours, theirs, conditions, note)
    finally:
        torch.set_num_threads(before)


def run(forward: Forward, pixels: Tensor) -> Tensor:
    """Embed in the usual batches."""
    return torch.cat([forward(part) for part in pixels.split(BATCH)])
