"""Teacher and student see the same part of an image, and the teacher sees each view once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import RESNET, VIT
from transferkit.data.memory_table import table_of_images
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.shared_views import TeacherForward, seeing_the_same, shared_cells, teach, views_of

SQUASHED = Preprocessing.vit().replace(image_size=64)  # of the teacher
CROPPED = Preprocessing.imagenet().replace(image_size=32)  # of the student


def open_tiny(options: dict[str, Any], **preprocessing: Any) -> Extractor:
    """A tiny extractor with random weights."""
    own = {**options.get("preprocessing", {}), **preprocessing} or None
    return Extractor.from_pretrained(options["backbone"], "none", None, own, options.get("architecture"))


def gradient(height: int, width: int) -> Tensor:
    """An image whose red is its column and whose green is its row."""
    red, green = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    return torch.stack([green, red, torch.full((height, width), 90.0)]).byte()


@pytest.mark.parametrize("size", [(90, 120), (200, 60)])
def test_the_teacher_sees_what_the_student_sees_in_its_own_size(size: tuple[int, int]) -> None:
    teacher = open_tiny(VIT)
    teacher.preprocessing = SQUASHED
    shared = seeing_the_same(teacher, CROPPED).preprocessing
    assert shared.image_size == SQUASHED.image_size and (shared.mean, shared.std) == (SQUASHED.mean, SQUASHED.std)
    image = gradient(*size)
    theirs, own = (each.resize_crop(image).float() for each in (shared, CROPPED))
    difference = (F.avg_pool2d(theirs, 2) - own).abs()
    assert difference.max() < 255 / min(size) * 2  # two pixels of the image
    squashed = F.avg_pool2d(SQUASHED.resize_crop(image).float(), 2)
    assert (squashed - own).abs().max() > 20  # its own view is another


def test_equal_geometry_leaves_the_teacher_as_it_is() -> None:
    teacher = open_tiny(VIT)
    teacher.preprocessing = Preprocessing.imagenet().replace(image_size=98)
    student = Preprocessing.imagenet().replace(image_size=64)
    assert seeing_the_same(teacher, student).preprocessing == teacher.preprocessing  # so its features are shared


def test_other_proportions_are_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot share views: .* sees 32 x 32 pixels, the student 32 x 64; give both"):
        seeing_the_same(open_tiny(VIT, image_size=32), CROPPED.replace(image_size=(32, 64)))


def test_random_views_are_the_same_part_in_both_sizes() -> None:
    image, shared = gradient(90, 120), Preprocessing.imagenet().replace(image_size=64)
    plain, *random = zip(views_of(CROPPED, 6, seed=1), views_of(shared, 6, seed=1), strict=True)
    parts = [(own.transform(image, 3), theirs.transform(image, 3)) for own, theirs in random]
    for own, theirs in parts:
        assert (F.avg_pool2d(theirs.float(), 2) - own.float()).abs().max() < 8
    assert len({own.numpy().tobytes() for own, _ in parts}) == 5  # and they are different parts
    assert torch.equal(plain[0].transform(image, 3), CROPPED.resize_crop(image))


def test_the_teacher_gives_what_its_library_gives_once_per_image(
    own_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = open_tiny(VIT, image_size=32)
    images = list(np.random.default_rng(0).integers(0, 256, (21, 40, 48, 3), dtype=np.uint8))
    table, seen = table_of_images(images), []
    run = type(teacher.backbone).run

    def counted(self: Any, pixels: Tensor, **options: Any) -> Any:
        seen.append(len(pixels))
        return run(self, pixels, **options)

    forward = TeacherForward(teacher, (2, 2))  # looks at a blank image
    assert forward.shape == (32 + 4 * 32,) and "2 x 2" in str(forward.describe())
    monkeypatch.setattr(type(teacher.backbone), "run", counted)
    monkeypatch.setattr("transferkit.training.shared_views.TeacherForward", lambda *_: forward)
    first, second = (teach(teacher, table, (2, 2), 2, seed=0, check=lambda broken: None) for _ in range(2))
    assert sum(seen) == 2 * 21  # views x images, and nothing the second time
    pixels = torch.stack([teacher.preprocessing.resize_crop(table.read(row)) for row in range(21)])
    with torch.no_grad():
        hidden = teacher.backbone.model(pixel_values=teacher.preprocessing.normalize(pixels)).last_hidden_state
    torch.testing.assert_close(first[0].embedding, hidden[:, 0], atol=1e-5, rtol=1e-5)
    grid = hidden[:, 1:].reshape(21, 2, 2, 2, 2, 32).mean((2, 4)).flatten(1, 2)  # 4 x 4 patches in 2 x 2 cells
    torch.testing.assert_close(first[0].patches, grid, atol=1e-5, rtol=1e-5)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.embedding, other.embedding) and torch.equal(one.patches, other.patches)
    assert not torch.equal(first[0].embedding, first[1].embedding)


def test_the_grid_is_the_coarser_one() -> None:
    transformer = open_tiny(VIT, image_size=32)  # 4 x 4 patches
    network = open_tiny(RESNET, resize=[64, 64], crop=[64, 64])
    assert shared_cells(transformer, network) == shared_cells(network, transformer) == (2, 2)
    network.preprocessing = CROPPED
    assert shared_cells(transformer, network) == (0, 0)  # a map of one cell is the embedding already
