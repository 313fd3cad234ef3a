"""The forward pass with packed linear layers and in other engines, against PyTorch's own way, on tensors in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.inputs import Network, photographs, resnet, vit_base, vit_small, workplace
from tests.bench.timing import Row, measured
from transferkit.data.image_table import open_images
from transferkit.extractor import fast_modules
from transferkit.extractor.engine import difference, missing
from transferkit.extractor.forward import Forward, Precision

BATCH = 16
COUNTS = {vit_base: 16, vit_small: 32, resnet: 64}
PRECISIONS: tuple[Precision, ...] = ("32", "bf16")


def rows(full: bool) -> Iterator[Row]:
    """Yield rows per network (ViT-B/16 at full size only): packed against plain in both precisions, then OpenVINO."""
    for make, count in COUNTS.items():
        if make is vit_base and not full:
            continue
        with workplace() as place:
            yield from measure(make(place), photographs(place, 4 * count if full else count))


def measure(network: Network, folder: Path) -> Iterator[Row]:
    """One core each, as in `embed`."""
    extractor, table = network.extractor(), open_images(folder)
    pixels = torch.stack([extractor.preprocessing.resize_crop(table.read(row)) for row in range(len(table))])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for precision in PRECISIONS:
            ours, plain = extractor.run_with("torch").forward(precision), unpacked(network, precision)
            if any(type(module) is fast_modules.PackedLinear for module in ours.backbone.modules()):
                yield row(
                    f"{network.name}, linear layers packed, {precision}", "MKL", 1.0, ours, plain, pixels, precision
                )
            if not missing("openvino"):
                other = extractor.run_with("openvino").forward(precision)
                yield row(f"{network.name}, PyTorch, {precision}", "OpenVINO", 0.92, ours, other, pixels, precision)
    finally:
        torch.set_num_threads(before)


def row(what: str, against: str, target: float, ours: Forward, theirs: Forward, pixels: Tensor, precision: str) -> Row:
    """Time both on the same pixels, after a check that they compute the same."""

    def run(forward: Forward) -> Tensor:
        return torch.cat([forward(part) for part in pixels.split(BATCH)])

    fault = difference(run(ours), run(theirs), precision)
    same, note = {"the same": fault is None}, f"{len(pixels)} images, one core"
    return measured(what, against, "faster", target, lambda: run(ours), lambda: run(theirs), same, note)


def unpacked(network: Network, precision: Precision) -> Forward:
    """The forward pass as on a processor where linear layers are not packed."""
    with not_packing():
        return network.extractor().forward(precision)


@contextmanager
def not_packing() -> Iterator[None]:
    """Leave linear layers to PyTorch, which gives float32 to MKL, as on a processor where they are not packed."""
    packs, fast_modules.packs_linear = fast_modules.packs_linear, lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        fast_modules.packs_linear = packs
