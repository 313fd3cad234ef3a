"""TensorBoard's projector: embeddings with labels, paths and thumbnails, in the files that its plugin reads.

``SummaryWriter.add_embedding`` is not used: a tab in a label breaks its table, and a second writer overwrites
the ``projector_config.pbtxt`` of the first.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from google.protobuf import text_format
from google.protobuf.message import Error as ProtobufError
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor
from torch.nn.functional import interpolate

from transferkit.data.embeddings import Embeddings
from transferkit.images.decoding import ImageError
from transferkit.reports import figures
from transferkit.runtime.cores import cores
from transferkit.runtime.files import atomic_path
from transferkit.runtime.progress import progress_bar
from transferkit.runtime.text import on_one_line
from transferkit.similarity import drawn_rows

CONFIG = "projector_config.pbtxt"
ROWS = 5_000
"""Most rows: the projector animates them in the browser."""
SIDE = 64
"""Pixels per side of a thumbnail; 5,000 of them make a sheet of 4,544 pixels per side, TensorBoard's limit is 8,192."""


def fill_projector(
    folder: Path, name: str, table: Embeddings, read: Callable[[str], Tensor], *, most: int = ROWS, seed: int = 0
) -> int:
    """Write a tab of the projector into a log directory; a tab of the same name is replaced, others stay.

    Args:
        folder: the log directory; gets ``projector_config.pbtxt`` and ``projector/<name>/``.
        name: name of the tab and its folder.
        table: the embeddings, N rows.
        read: path of a row -> uint8 pixels (3, H, W); an image that it cannot read (ImageError) is black.
        most: most rows to show; if there are more, that many are drawn at random.
        seed: of the random draw.

    Returns:
        Number of rows shown.

    Raises:
        UserError: the directory cannot be written.
    """
    rows = drawn_rows(len(table), most, seed).tolist()
    shown = table.select(rows)
    tab = Path("projector", name)
    write_lines(folder / tab / "tensors.tsv", ("\t".join(f"{x:.7g}" for x in row) for row in shown.embedding.tolist()))
    write_lines(folder / tab / "metadata.tsv", metadata_lines(shown))
    figures.save(figures.sheet(thumbnails(shown, read)), folder / tab / "sprite.png")
    config = read_config(folder / CONFIG)
    kept = [entry for entry in config.embeddings if entry.tensor_name != name]
    del config.embeddings[:]
    config.embeddings.extend(kept)
    entry = config.embeddings.add()
    entry.tensor_name, entry.tensor_path = name, str(tab / "tensors.tsv")
    entry.tensor_shape.extend(shown.embedding.shape)
    entry.metadata_path = str(tab / "metadata.tsv")
    entry.sprite.image_path = str(tab / "sprite.png")
    entry.sprite.single_image_dim.extend((SIDE, SIDE))
    write_lines(
        folder / CONFIG, text_format.MessageToString(config).splitlines()
    )  # last: the files that it names exist
    return len(rows)


def metadata_lines(table: Embeddings) -> list[str]:
    """Return a header and a line per row; a dash for no label: the projector drops empty cells at the end of a line."""
    columns = (table.labels, table.paths, table.splits)
    rows = [[on_one_line(cell or "–") for cell in row] for row in zip(*columns, strict=True)]
    return ["\t".join(row) for row in (["label", "path", "split"], *rows)]


def thumbnails(table: Embeddings, read: Callable[[str], Tensor]) -> list[Tensor]:
    """Return the center square of each image, uint8 (3, SIDE, SIDE); black if it cannot be read."""

    def thumbnail_of(path: str) -> Tensor:
        try:
            return thumbnail(read(path))
        except ImageError:
            return torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)

    result = []
    with progress_bar("thumbnails", len(table)) as advance, ThreadPoolExecutor(cores()) as pool:
        for made in pool.map(thumbnail_of, table.paths):
            result.append(made)
            advance(1)
    return result


def thumbnail(pixels: Tensor) -> Tensor:
    """The middle square of an image: uint8 (3, H, W) -> (3, SIDE, SIDE); of a thumbnail itself."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[None, :, top : top + side, left : left + side]  # (1, 3, side, side)
    return interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True)[0]


class Thumbnails:
    """Those of the rows that :func:`fill_projector` shows, made of pixels that were decoded for something else.

    Args:
        paths: of all rows.

    Attributes:
        made: path -> uint8 (3, SIDE, SIDE).
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.wanted = {paths[row] for row in drawn_rows(len(paths), ROWS, 0).tolist()}
        self.made: dict[str, Tensor] = {}

    def see(self, path: str, pixels: Tensor) -> None:
        """Keep the thumbnail of an image if it is wanted."""
        if path in self.wanted and path not in self.made:
            self.made[path] = thumbnail(pixels)


def read_config(path: Path) -> ProjectorConfig:
    """Read the tabs of the projector; none if the file is missing or damaged."""
    config = ProjectorConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (FileNotFoundError, UnicodeDecodeError, ProtobufError):
        return ProjectorConfig()
    return config


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
