"""`embed --precision bf16` against float32, on processors that compute in bfloat16.

Float32 as PyTorch computes it: where linear layers are packed, our own is up to 1.3 times as fast (`row_engine.py`).
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.inputs import Network, photographs, resnet, vit_base, vit_small, workplace
from tests.bench.row_embed import embed
from tests.bench.row_engine import not_packing
from tests.bench.timing import Row, measured
from transferkit.data.image_table import open_images
from transferkit.probe.linear import fit_linear, logits_of
from transferkit.similarity.intervals import wilson

COUNTS = {vit_base: 64, vit_small: 128, resnet: 256}


def rows(full: bool) -> Iterator[Row]:
    """Yield a row per network (ViT-B/16 at full size only); not measured if bfloat16 is emulated."""
    for make, count in COUNTS.items():
        if make is vit_base and not full:
            continue
        with workplace() as place:
            yield measure(make(place), photographs(place, None if full else count), place)


def measure(network: Network, folder: Path, place: Path) -> Row:
    """Embed the same folder in both; compare the smallest cosine of a row, and a linear probe on each."""
    what, against = f"embed {network.name}, bf16", "embed float32, linear layers by MKL"
    cpu = torch.backends.cpu.get_cpu_capability()
    if not torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported():
        return Row(what, against, "faster", 1.8, [], [], note=f"{cpu} without AVX512-BF16 or AMX: bfloat16 is emulated")
    extractor = network.extractor()
    usual = network.extractor()

    def by_mkl() -> Tensor:
        with not_packing():
            return embed(usual, folder, place)

    half, single = embed(extractor, folder, place, "bf16"), by_mkl()
    cosine = float(torch.cosine_similarity(half, single).min())
    right, total = probe(single, folder)
    low, high = wilson(right, total)
    half_right, _ = probe(half, folder)
    conditions = {
        f"smallest cosine {cosine:.5f} ≥ 0.999": cosine >= 0.999,
        f"probe accuracy {half_right / total:.3f} in {low:.3f}–{high:.3f}": low <= half_right / total <= high,
    }
    return measured(
        what, against, "faster", 1.8, lambda: embed(extractor, folder, place, "bf16"), by_mkl, conditions,
        f"{len(single)} images",
    )  # fmt: skip


def probe(embedding: Tensor, folder: Path) -> tuple[int, int]:
    """Return the number of correct val rows, and of all val rows, for softmax regression fitted on train."""
    table = open_images(folder)
    target = torch.tensor([table.class_names.index(label or "") for label in table.labels])
    train = torch.tensor([split == "train" for split in table.splits])
    fitted = fit_linear(embedding[train], target[train], 2, standardization="zscore", c=1.0)
    preds = logits_of(embedding[~train], fitted.weight, fitted.bias, "zscore").argmax(1)
    return int((preds == target[~train]).sum()), len(preds)
