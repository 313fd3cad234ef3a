"""Measures of all pictures of a set, read once each."""

from concurrent.futures import ThreadPoolExecutor

from transferkit.data.image_table import ImageTable
from transferkit.images.decoding import ImageError
from transferkit.images.quality import PictureStats, picture_stats
from transferkit.runtime.cores import cores
from transferkit.runtime.progress import progress_bar

SMALLEST = 32  # pixels of the shorter side: in less there is no sharpness to measure


def look_at_pictures(table: ImageTable) -> dict[str, PictureStats]:
    """Return path -> measures of every picture that can be read and is no thumbnail."""

    def one(row: int) -> PictureStats | None:
        try:
            pixels = table.read(row)
            return picture_stats(pixels) if min(pixels.shape[1:]) >= SMALLEST else None
        except ImageError:
            return None

    found = {}
    with progress_bar("looking at pictures", len(table)) as advance, ThreadPoolExecutor(cores()) as pool:
        for path, stats in zip(table.paths, pool.map(one, range(len(table))), strict=True):
            if stats is not None:
                found[path] = stats
            advance(1)
    return found
