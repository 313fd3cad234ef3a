"""Backbones that are known by name, with what one asks before choosing: nothing is opened, built or downloaded."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("known_models.csv")  # python -m tests.backbones.known_table writes it


class KnownModel(NamedTuple):
    """A backbone as ``transferkit models`` lists it; what is not known without building it is None.

    Attributes:
        name: as ``extractor`` takes it.
        library: that opens it.
        parameters: of the published model: of torchvision and timm with its classifier, of images and texts the image
            tower.
        embed_dim: width of the default pooling.
        image_size: side of the images that it was made for, the longer one.
        poolings: the default first.
        words: whether it can be asked by words.
    """

    name: str
    library: str
    parameters: int | None
    embed_dim: int | None
    image_size: int | None
    poolings: tuple[str, ...]
    words: bool = False


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return the backbones of torchvision, the well-known ones of transformers and those of timm with weights."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[2:]  # after the release of timm and the names of the columns
    return tuple(
        KnownModel(name, library, int(parameters), int(width), int(side), tuple(poolings.split()), words == "yes")
        for name, library, parameters, width, side, poolings, words in rows
    )


@cache
def release_of_timm() -> str:
    """Return the release of timm whose models are known."""
    with FILE.open(encoding="utf-8") as file:
        return file.readline().strip().removeprefix("timm ")
