"""Thumbnails: small, each once, within the budget; what cannot be read is told."""

import base64
from collections import Counter
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch import Tensor

from transferkit.images.decoding import ImageError
from transferkit.reports.thumbnails import SIDE, make_thumbnails, thumbnail_uri


def opened(uri: str) -> Image.Image:
    kind, data = uri.split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((400, 300), (72, 96)), ((300, 400), (96, 72)), ((8, 8), (96, 96)), ((2, 5000), (96, 1)), ((60, 40), (40, 60))],
)
def test_a_thumbnail_keeps_the_proportions(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = opened(thumbnail_uri(torch.zeros(3, *shape, dtype=torch.uint8)))
    assert image.size == size and max(image.size) <= SIDE and image.format == "JPEG"


def test_colors_stay() -> None:
    pixels = torch.tensor([200, 30, 90], dtype=torch.uint8)[:, None, None].expand(3, 200, 200)
    assert all(
        abs(a - b) <= 3 for a, b in zip(opened(thumbnail_uri(pixels)).getpixel((50, 50)), (200, 30, 90), strict=True)
    )


def test_the_first_fit_the_budget_and_the_rest_is_counted() -> None:
    counts: Counter[str] = Counter()

    def read(path: str) -> Tensor:
        counts[path] += 1
        if path == "7":
            raise ImageError("truncated", "truncated JPEG")
        return torch.randint(0, 255, (3, 100, 100), dtype=torch.uint8)

    paths = [str(number) for number in range(500)]
    made = make_thumbnails(paths, read, budget=100_000)
    assert sum(map(len, made.uris.values())) <= 100_000
    assert list(made.uris)[:7] == paths[:7] and made.unread == {"7": "truncated JPEG"}
    assert len(made.uris) + len(made.unread) + made.left_out == 500
    assert max(counts.values()) == 1 and len(counts) < 200  # no image is decoded in vain
    assert len(set(made.ids.values())) == len(made.uris)
