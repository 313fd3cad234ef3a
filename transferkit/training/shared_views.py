"""What teacher and student both see of an image, and what the teacher makes of it, embedded once per view."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.backbones import Backbone
from transferkit.backbones.token_grid import as_grid
from transferkit.data.image_table import ImageTable
from transferkit.embed import cached_features
from transferkit.embed.features import make_view
from transferkit.embed.stream import View
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.images.augmentation import Augmentation
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.distill_losses import on_grid

MOST_CELLS = 7  # per side: 49 vectors per view stay in memory, 75 kB of a ViT-S
Cells = tuple[int, int]


class Targets(NamedTuple):
    """What the teacher makes of one view of some images.

    Attributes:
        embedding: float32 (N, D).
        patches: float32 (N, cells, C); no cells without a grid.
    """

    embedding: Tensor
    patches: Tensor


def seeing_the_same(teacher: Extractor, student: Preprocessing) -> Extractor:
    """Return the teacher with the part of an image that the student sees, in the teacher's own size and colors.

    Resize and crop are those of the student, in proportion; interpolation, arithmetic and normalization the teacher's.

    Raises:
        UserError: they take images of different proportions, so they cannot share views.
    """
    own = teacher.preprocessing
    (height, width), (rows, columns) = own.image_size, student.image_size
    if height * columns != width * rows:
        raise UserError(
            f"teacher and student cannot share views: {teacher.name} sees {height} x {width} pixels, the student "
            f"{rows} x {columns}; give both the same proportions by `teacher_size` and `image_size`"
        )
    shared = replace(
        student.replace(image_size=own.image_size),
        interpolation=own.interpolation, mean=own.mean, std=own.std, arithmetic=own.arithmetic, channels=own.channels,
    )  # fmt: skip
    return Extractor(teacher.backbone, shared)


class TeacherForward(Forward):
    """The teacher's forward pass: embedding and patches in one vector per image, by one pass of the network.

    Args:
        teacher: on the device to use.
        cells: rows and columns of the grid that the features are averaged over; (0, 0) keeps the embedding alone.
    """

    def __init__(self, teacher: Extractor, cells: Cells) -> None:
        super().__init__(teacher.backbone, teacher.preprocessing)
        self.cells = cells
        if cells != (0, 0):
            with torch.no_grad():
                blank = torch.zeros(1, 3, *teacher.preprocessing.image_size, dtype=torch.uint8)
                self.shape = tuple(self(blank).shape[1:])

    def kept(self, backbone: Backbone, inputs: Tensor) -> Tensor:
        """Return the embedding, then the patches in row-major order: (B, D + cells * C)."""
        if self.cells == (0, 0):
            return super().kept(backbone, inputs)
        features, embedding = backbone.forward_both(inputs)
        return torch.cat((embedding, on_grid(as_map(features, inputs), self.cells).flatten(1)), 1)

    def describe(self) -> dict[str, object]:
        """Return what the result depends on, for the feature cache."""
        grid = {} if self.cells == (0, 0) else {"features": f"pooled and a grid of {self.cells[0]} x {self.cells[1]}"}
        return super().describe() | grid


def as_map(features: Tensor, pixels: Tensor) -> Tensor:
    """Return features before pooling, map or tokens, as a map (B, C, h, w)."""
    return features if features.ndim == 4 else as_grid(features, *pixels.shape[-2:])


def shared_cells(teacher: Extractor, student: Extractor) -> Cells:
    """Return rows and columns of the grid on which features are compared: the coarser of both, at most 7 x 7.

    Returns:
        (0, 0) where one of them has a single cell, which the embedding stands for already.
    """
    sides = [grid_of(each) for each in (teacher, student)]
    rows, columns = (min(*parts, MOST_CELLS) for parts in zip(*sides, strict=True))
    return (rows, columns) if rows * columns > 1 else (0, 0)


@torch.no_grad()
def grid_of(extractor: Extractor) -> Cells:
    """Return rows and columns of the features before pooling."""
    pixels = torch.zeros(1, 3, *extractor.preprocessing.image_size, device=extractor.device)
    rows, columns = as_map(extractor.backbone.forward_features(pixels), pixels).shape[-2:]
    return rows, columns


def views_of(preprocessing: Preprocessing, count: int, seed: int) -> list[View]:
    """Return the fixed views: first the plain one, then random crops, mirrored and with changed colors.

    One seed gives teacher and student the same part of the image, in the size of each.
    """
    plain = View("none", lambda image, row: preprocessing.resize_crop(image))
    light = Augmentation("light", preprocessing)
    return [plain, *(make_view(light, seed, number) for number in range(count - 1))]


def teach(
    teacher: Extractor, table: ImageTable, cells: Cells, count: int, seed: int, check: Callable[[dict[str, str]], None]
) -> list[Targets]:
    """Return what the teacher makes of each fixed view of a table, computed now or cached.

    Args:
        teacher: sees what the student sees, on the device to use.
        table: images in path order, all of which can be read.
        cells: of the grid.
        count: number of views.
        seed: of the random ones.
        check: called with the images that could not be read after all.
    """
    forward, found = TeacherForward(teacher, cells), []
    for view in views_of(teacher.preprocessing, count, seed):
        known = cached_features(teacher, table, None if view.name == "none" else view, forward=forward)
        check(known.metadata["broken"])
        embedding, patches = known.embedding[:, : teacher.embed_dim], known.embedding[:, teacher.embed_dim :]
        count_of = cells[0] * cells[1]
        found.append(Targets(embedding, patches.reshape(len(patches), count_of, patches.shape[1] // max(1, count_of))))
    return found
