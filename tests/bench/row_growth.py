"""What an image more costs `embed` as their number grows; see bench_embed_memory.py, which does the work."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.backbones.families import save
from tests.bench.bench_embed_memory import run, write_images
from tests.bench.timing import Row, Seconds, seconds

PAIRS = 5


def rows(full: bool) -> Iterator[Row]:
    """The slope of the upper half of the curve over that of the lower: 1 on a straight line, more if it bends up."""
    sizes = (1_000, 10_000, 100_000) if full else (1_000, 4_000, 16_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save("vit", root / "vit")
        for size in sizes:
            write_images(root / f"{size}", size)
        run(root, sizes[0])
        times = [[seconds(lambda size=size: run(root, size)) for size in sizes] for _ in range(PAIRS)]
    upper = [slope(turn[1], turn[2], sizes[2] - sizes[1]) for turn in times]
    lower = [slope(turn[0], turn[1], sizes[1] - sizes[0]) for turn in times]
    small, middle, large = (f"{size // 1000}k" for size in sizes)
    yield Row(
        f"embed, tiny ViT: an image more, {middle} to {large}", f"an image more, {small} to {middle}",
        "cheaper", 1.1, upper, lower, note="seconds are of one image",
    )  # fmt: skip


def slope(less: Seconds, more: Seconds, images: int) -> Seconds:
    """Seconds an image more."""
    return Seconds((more.wall - less.wall) / images, (more.cpu - less.cpu) / images)
