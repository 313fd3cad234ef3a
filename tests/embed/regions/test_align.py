"""Boxes pooled from the features of their image: mean colors, and an object that moves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.embed.regions.drawn import Colors, folder, gradient
from tests.extractor.examples import resnet18, transformer
from transferkit import backbones
from transferkit.embed.regions import Box, embed_regions
from transferkit.embed.regions.align import Sizing, as_map
from transferkit.errors import UserError
from transferkit.extractor import Extractor


@pytest.mark.parametrize("backbone", [Colors(), Colors(tokens=True), Colors(only=56), Colors(tokens=True, only=56)])
@pytest.mark.parametrize("size", [(80, 200), (150, 90), (64, 64)])
def test_roi_align_sees_what_is_in_the_box(tmp_path: Path, backbone: Colors, size: tuple[int, int]) -> None:
    """Through any resize or squash, up to the border: the mean color is that of the box's own pixels."""
    height, width = size
    images = folder(tmp_path, a=gradient(height, width))
    corners = [(0, 0, width, height), (0, 0, 20, 30), (width - 25, height - 18, width, height)]
    corners += [(width * 0.3, height * 0.4, width * 0.7, height * 0.6), (width - 30, -50, width + 40, 30)]
    result = embed_regions(
        Extractor(backbone), images, [Box(n, "a.png", *corner) for n, corner in enumerate(corners)], "roi_align"
    )
    pixels = gradient(height, width).astype(float) / 255
    for found, (x1, y1, x2, y2) in zip(result.embeddings.embedding, corners, strict=True):
        inside = pixels[max(0, round(y1)) : round(y2), max(0, round(x1)) : round(x2)].mean((0, 1))
        assert found.tolist() == pytest.approx(inside, abs=0.035)  # about half a cell of 4 in 56 pixels
    assert [box.number for box in result.clipped] == [4]


def moved(tmp_path: Path, extractor: Extractor, side: int, object_side: int, places: tuple[int, int]) -> Tensor:
    """Embeddings (picture, box, D): a blank picture and one with an object at each place, boxes at both places."""
    thing = np.random.default_rng(1).integers(0, 256, (object_side, object_side, 3)).astype(np.uint8)
    pictures = {"blank": np.full((side, side, 3), 127, np.uint8)}
    for number, place in enumerate(places):
        pictures[f"object{number}"] = pictures["blank"].copy()
        pictures[f"object{number}"][place : place + object_side, place : place + object_side] = thing
    images = folder(tmp_path, **pictures)
    boxes = [
        Box(number, path, place, place, place + object_side, place + object_side)
        for path in images.paths
        for number, place in enumerate(places)
    ]
    return embed_regions(extractor, images, boxes, "roi_align").embeddings.embedding.unflatten(0, (3, 2))


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_an_object_moves_with_its_box_among_patches(tmp_path: Path, family: str) -> None:
    """Without position embeddings a transformer does not know where a patch lies: the two are equal."""
    extractor = transformer(family, "cls")
    model = extractor.backbone.model
    torch.nn.init.zeros_(model.embeddings.position_embeddings)  # type: ignore[arg-type, union-attr]
    patch = model.config.patch_size
    extractor.preprocessing = extractor.preprocessing.override({"image_size": 4 * patch})
    (_, (there, elsewhere), (left, found)) = moved(tmp_path, extractor, 4 * patch, patch, (patch, 2 * patch))
    torch.testing.assert_close(there, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(elsewhere, left, rtol=1e-4, atol=1e-5)
    assert (there - left).norm() > 0.1 * there.norm()


def test_an_object_moves_with_its_box_in_a_map(tmp_path: Path) -> None:
    """A convolutional network sees the border from afar, so what the object adds is alike, not equal."""
    extractor = resnet18()
    extractor.preprocessing = extractor.preprocessing.override({"resize": (352, 352), "crop": (352, 352)})
    (blank, (there, elsewhere), (left, found)) = moved(tmp_path, extractor, 352, 64, (96, 192))
    first, second = there - blank[0], found - blank[1]
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.95
    assert (elsewhere - blank[1]).norm() < 0.5 * second.norm() and (left - blank[0]).norm() < 0.5 * first.norm()


def test_one_forward_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder(tmp_path, a=gradient(40, 60), b=gradient(60, 40))
    extractor, count = Extractor(Colors()), []
    Sizing(extractor.forward(features="unpooled"))
    features = Colors.forward_features
    monkeypatch.setattr(Colors, "forward_features", lambda self, x: (count.append(len(x)), features(self, x))[1])
    Sizing(extractor.forward(features="unpooled"))
    trials = len(count)
    boxes = [Box(n, f"{name}.png", n, n, n + 9, n + 9) for name in "ab" for n in range(10)]
    embed_regions(extractor, images, boxes, "roi_align")
    assert len(count) - 2 * trials == 2


def test_sizes() -> None:
    def sizing(extractor: Extractor) -> Sizing:
        return Sizing(extractor.forward(features="unpooled"))

    assert sizing(resnet18())(100, 200) == (64, 160)  # shorter side 73, in strides of 32 (at 64: 2 cells)
    assert sizing(transformer("vit", "cls"))(100, 200)[0] == 32  # squashed, as its scheme says
    fixed = Extractor(backbones.build("vit_b_16", "none", architecture={"image_size": 32}))
    assert sizing(fixed)(100, 200) == (32, 32)
    assert tuple(as_map(torch.zeros(2, 12, 5), 30, 40).shape) == (2, 5, 3, 4)
    with pytest.raises(UserError, match="do not form a grid"):
        as_map(torch.zeros(2, 5), 30, 40)


def test_tokens_lie_in_row_major_order() -> None:
    cells = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert torch.equal(as_map(cells.flatten(2).transpose(1, 2), 40, 60), cells)
