"""Cost of `embed` per additional image as their number grows; bench_embed_memory.py measures the memory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.backbones.families import save
from tests.bench import timing
from tests.bench.bench_embed_memory import write_images
from tests.bench.inputs import workplace
from tests.bench.row_embed import embed
from tests.bench.timing import Row, Seconds, Turns, seconds, settled
from transferkit.extractor import Extractor


def rows(full: bool) -> Iterator[Row]:
    """Compare the slope of the upper part of the curve with the lower: 1 on a straight line, more if it bends up."""
    sizes = (1_000, 10_000, 100_000) if full else (1_000, 4_000, 16_000)
    with workplace() as place, tempfile.TemporaryDirectory() as out:
        save("vit", place / "vit")
        extractor = Extractor.from_pretrained(place / "vit")
        for size in sizes:
            write_images(place / f"{size}", size)
        folders = [place / f"{size}" for size in sizes]
        counts = [len(embed(extractor, folder, Path(out))) for folder in folders]
        assert counts == list(sizes), f"embedded {counts} images of {sizes}"

        def turns() -> Turns:
            spent = [
                [seconds(lambda at=at: embed(extractor, at, Path(out))) for at in folders] for _ in range(timing.pairs)
            ]
            lower = [slope(turn[0], turn[1], sizes[1] - sizes[0]) for turn in spent]
            return [slope(turn[1], turn[2], sizes[2] - sizes[1]) for turn in spent], lower

        small, middle, large = (f"{size // 1000}k" for size in sizes)
        what, against = f"embed, tiny ViT: an image more, {middle} to {large}", f"an image more, {small} to {middle}"
        yield settled(Row(what, against, "cheaper", 1.1, *turns(), note="seconds are those of one image"), turns)


def slope(less: Seconds, more: Seconds, images: int) -> Seconds:
    """Return the seconds per additional image."""
    return Seconds((more.wall - less.wall) / images, (more.cpu - less.cpu) / images)
