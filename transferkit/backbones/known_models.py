"""Backbones that are known by name, with what one asks before choosing: nothing is opened, built or downloaded."""

from functools import cache
from typing import NamedTuple


class KnownModel(NamedTuple):
    """A backbone as ``transferkit models`` lists it; what is not known without building it is None.

    Attributes:
        name: as ``extractor`` takes it.
        library: that opens it.
        parameters: of the published model: of torchvision with its classifier, of images and texts the image tower.
        embed_dim: width of the default pooling.
        image_size: side of the images that it was made for.
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


POOLINGS = {
    "tv": ("avg", "logits"),
    "vit": ("cls", "mean", "cls+mean", "pooler"),
    "mean": ("mean", "pooler"),
    "msn": ("cls", "mean", "cls+mean"),
    "beit": ("pooler", "cls", "mean", "cls+mean"),
    "map": ("pooler", "mean"),
    "dual": ("pooler", "projection", "mean"),
}
# name, parameters, width, side, poolings; checked against the libraries by tests/backbones/test_known_models.py
TORCHVISION = """
"""
TRANSFORMERS = """
"""


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return the backbones of torchvision and the well-known ones of transformers, in the order of their names."""
    found = []
    for library, table in (("torchvision", TORCHVISION), ("transformers", TRANSFORMERS)):
        for line in table.strip().splitlines():
            name, parameters, width, side, kind = line.split()
            found.append(KnownModel(name, library, int(parameters), int(width), int(side), POOLINGS[kind], kind == "dual"))
    return tuple(found)
