"""Boxes that are cut out, against the extractor on the same pixels."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.embed.regions.drawn import folder, gradient
from tests.extractor.examples import resnet18, transformer
from transferkit.data.image_table import open_images
from transferkit.embed.regions import Box, embed_regions


@pytest.mark.parametrize("make", [resnet18, lambda: transformer("vit", "cls")])
@pytest.mark.parametrize("batch", [1, 40])
def test_a_box_over_the_whole_image_is_the_image(tmp_path: Path, photos: list[Tensor], make, batch: int) -> None:  # type: ignore[no-untyped-def]
    names = [f"{number}.png" for number in range(len(photos))]
    for name, photo in zip(names, photos, strict=True):
        Image.fromarray(photo.movedim(0, -1).numpy()).save(tmp_path / name)
    extractor = make()
    boxes = [
        Box(number, name, 0, 0, photo.shape[2], photo.shape[1])
        for name, photo in zip(names, photos, strict=True)
        for number in range(batch // len(photos) + 1)
    ]
    result = embed_regions(extractor, open_images(tmp_path), boxes, "crop")
    own = extractor.embed([tmp_path / path for path in result.embeddings.paths])
    torch.testing.assert_close(result.embeddings.embedding, own, rtol=1e-5, atol=1e-5)
    assert result.clipped == [] and result.broken == {}


def test_crop_is_the_extractor_on_the_pixels_of_the_box(tmp_path: Path) -> None:
    images = folder(tmp_path, a=gradient(50, 70))
    extractor = transformer("vit", "mean")
    boxes = [Box(1, "a.png", 10, 5, 40, 45), Box(2, "a.png", 9.6, 4.2, 39.5, 44.1), Box(3, "a.png", 60, 30, 99, 99)]
    result = embed_regions(extractor, images, boxes, "crop")
    pixels = torch.from_numpy(gradient(50, 70)).movedim(-1, 0)
    cuts = [pixels[:, 5:45, 10:40], pixels[:, 4:45, 9:40], pixels[:, 30:50, 60:70]]
    torch.testing.assert_close(result.embeddings.embedding, extractor.embed(cuts), rtol=1e-5, atol=1e-5)
    assert [box.number for box in result.clipped] == [3] and result.boxes[2][2:6] == (60, 30, 70, 50)
