"""Explanations from Python: in the pixels of each image, of the class that is asked for."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from transferkit import backbones
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.grad_cam import GradCam
from transferkit.images.carry_back import carry_back


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", "none", preprocessing={"image_size": 64})
    return Extractor(backbone, head=nn.Linear(512, 3), class_names=["a", "b", "<i>c</i>"])


@pytest.fixture
def files(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.rglob("*.*g"))[:18]


def test_one_per_image_in_order(extractor: Extractor, files: list[Path]) -> None:
    found = list(extractor.explain(files))  # more than a batch
    assert len(found) == len(files) > 16
    torch.testing.assert_close(
        torch.stack([each.embedding for each in found]), extractor.embed(files), atol=1e-4, rtol=0
    )
    shares = extractor.classify(extractor.embed(files)).softmax(1)
    for each, file, share in zip(found, files, shares, strict=True):
        width, height = Image.open(file).size
        assert each.image.shape == (3, height, width) and each.heat.shape == each.seen.shape == (height, width)
        assert each.class_name == each.prediction == extractor.class_names[int(share.argmax())]
        assert abs(each.probability - share.max().item()) < 1e-5


def test_a_given_class(extractor: Extractor, files: list[Path]) -> None:
    images = [torch.randint(256, (3, 50, 90), dtype=torch.uint8) for _ in range(2)]
    found = list(extractor.explain(images, "<i>c</i>"))
    pixels = torch.stack([extractor.preprocessing.resize_crop(image) for image in images])
    maps = GradCam(extractor)(pixels, [2, 2])
    for row, each in enumerate(found):
        assert each.class_name == "<i>c</i>" and torch.equal(each.image, images[row])
        heat, seen = carry_back(maps.heat[row], extractor.preprocessing, 50, 90)
        assert torch.equal(each.heat, heat) and torch.equal(each.seen, seen)


def test_what_cannot_be_explained(extractor: Extractor, tmp_path: Path) -> None:
    assert list(extractor.explain([])) == []
    with pytest.raises(UserError, match="`class_name` is 'z', which is not a class here; the classes: 'a', 'b', '<i>c"):
        extractor.explain([], "z")  # at the call, not at the first item
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(UserError, match=r"no\.png cannot be read as an image"):
        list(extractor.explain([tmp_path / "no.png"]))
    with pytest.raises(UserError, match="has no head, so no class to explain"):
        Extractor(extractor.backbone).explain([])
