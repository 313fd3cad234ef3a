"""Embeddings of boxes against the image's own, against mean colours, and against a moved object."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.extractor.examples import resnet18, transformer
from transferkit import backbones
from transferkit.backbones import Backbone
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed.regions import Box, embed_regions, save_regions
from transferkit.embed.regions.align import Sizing, as_map
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "arithmetic": "torchvision"}


class Colours(Backbone):
    """Features are mean colours of patches of 4 x 4 pixels, as a map or as tokens; some take one size only."""

    def __init__(self, tokens: bool = False, only: int | None = None) -> None:
        super().__init__()
        self.name, self.model, self.pooling, self.poolings = "colours", torch.nn.Conv2d(3, 3, 1), "avg", ("avg",)
        self.stages, self.embed_dim, self.tokens, self.only = {"stem": []}, 3, tokens, only
        self.preprocessing = Preprocessing(resize=64, crop=(56, 56), **RAW)

    def forward_features(self, pixels: Tensor) -> Tensor:
        if self.only and tuple(pixels.shape[2:]) != (self.only, self.only):
            raise ValueError("another size")
        cells = torch.nn.functional.avg_pool2d(pixels, 4)
        return cells.flatten(2).transpose(1, 2) if self.tokens else cells

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))

    def spec(self) -> dict[str, object]:
        return {}


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right and green downward: the mean colour of a box tells its centre."""
    across, down = np.meshgrid(np.arange(width) * 255 / width, np.arange(height) * 255 / height)
    return np.stack([across, down, np.full_like(across, 90)], -1).round().astype(np.uint8)


def folder(tmp_path: Path, **pictures: np.ndarray) -> ImageTable:
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return open_images(tmp_path)


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


@pytest.mark.parametrize("backbone", [Colours(), Colours(tokens=True), Colours(only=56), Colours(tokens=True, only=56)])
@pytest.mark.parametrize("size", [(80, 200), (150, 90), (64, 64)])
def test_roi_align_sees_what_is_in_the_box(tmp_path: Path, backbone: Colours, size: tuple[int, int]) -> None:
    """Through any resize or squash, up to the border: the mean colour is that of the box's own pixels."""
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


def test_upright_pixels(tmp_path: Path) -> None:
    """Boxes are in the picture as it is shown, after its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = gradient(100, 60)
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "a.png", exif=exif)
    for method in ("crop", "roi_align"):
        box = Box(1, "a.png", 0, 60, 60, 100)
        found = embed_regions(Extractor(Colours()), open_images(tmp_path), [box], method).embeddings.embedding[0]
        assert found.tolist() == pytest.approx(upright[60:].mean((0, 1)) / 255, abs=0.04)


@pytest.mark.parametrize("method", ["crop", "roi_align"])
def test_only_images_with_boxes_are_read_and_faults_are_named(tmp_path: Path, method: str) -> None:
    images = folder(tmp_path, a=gradient(40, 60), b=gradient(60, 40), c=gradient(50, 50))
    (tmp_path / "c.png").write_bytes(b"no picture")
    extractor = Extractor(Colours())
    good = [Box(9, "b.png", 0, 0, 10, 10, "y"), Box(4, "a.png", 5, 5, 50, 30, "x"), Box(2, "b.png", 3, 3, 20, 20)]
    result = embed_regions(extractor, images, good, method)  # c.png has no box
    assert [(box.path, box.number) for box in result.boxes] == [("a.png", 4), ("b.png", 2), ("b.png", 9)]
    assert result.embeddings.labels == ["x", None, "y"]

    bad = [Box(7, "a.png", 60, 0, 70, 10), Box(8, "c.png", 0, 0, 5, 5)]
    with pytest.raises(UserError) as error:
        embed_regions(extractor, images, [*good, *bad], method)
    assert "row 7: 'a.png': the box 60, 0, 70, 10 lies outside of its image of 60 x 40 pixels" in str(error.value)
    assert "row 8: 'c.png': not an image" in str(error.value)
    rest = embed_regions(extractor, images, [*good, *bad], method, on_error="skip")
    assert set(rest.broken) == {7, 8}
    torch.testing.assert_close(rest.embeddings.embedding, result.embeddings.embedding, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="2 boxes have no pixels"):
        embed_regions(extractor, images, bad, method, on_error="skip")


def test_one_forward_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder(tmp_path, a=gradient(40, 60), b=gradient(60, 40))
    extractor, count = Extractor(Colours()), []
    Sizing(extractor.forward(features="unpooled"))
    features = Colours.forward_features
    monkeypatch.setattr(Colours, "forward_features", lambda self, x: (count.append(len(x)), features(self, x))[1])
    Sizing(extractor.forward(features="unpooled"))
    trials = len(count)
    boxes = [Box(n, f"{name}.png", n, n, n + 9, n + 9) for name in "ab" for n in range(10)]
    embed_regions(extractor, images, boxes, "roi_align")
    assert len(count) - 2 * trials == 2


def test_the_file(tmp_path: Path) -> None:
    images = folder(tmp_path, a=gradient(40, 60))
    boxes = [Box(2, "a.png", -5, 0, 10, 10, "x"), Box(1, "a.png", 5, 5, 50.5, 30)]
    result = embed_regions(Extractor(Colours()), images, boxes, "roi_align")
    save_regions(result, tmp_path / "out.parquet")
    table = Embeddings.load(tmp_path / "out.parquet")
    assert torch.equal(table.embedding, result.embeddings.embedding) and list(table.labels) == [None, "x"]
    assert (table.metadata["pooling"], table.metadata["method"]) == ("roi_align", "roi_align")
    columns = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert [columns[name] for name in ("box", "x1", "y1", "x2", "y2")] == [[1, 2], [5, 0], [5, 0], [50.5, 10], [30, 10]]


def test_sizes() -> None:
    def sizing(extractor: Extractor) -> Sizing:
        return Sizing(extractor.forward(features="unpooled"))

    assert sizing(resnet18())(100, 200) == (64, 160)  # shorter side 73, in strides of 32 (at 64: 2 cells)
    assert sizing(transformer("vit", "cls"))(100, 200)[0] == 32  # squashed, as its scheme says
    fixed = Extractor(backbones.build("vit_b_16", "none", architecture={"image_size": 32}))
    assert sizing(fixed)(100, 200) == (32, 32)
    assert tuple(as_map(torch.zeros(2, 12, 5), 30, 40).shape) == (2, 5, 3, 4)
    with pytest.raises(UserError, match="lie in no grid"):
        as_map(torch.zeros(2, 5), 30, 40)


def test_tokens_lie_in_row_major_order() -> None:
    cells = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert torch.equal(as_map(cells.flatten(2).transpose(1, 2), 40, 60), cells)


@pytest.mark.parametrize("method", ["crop", "roi_align"])
def test_boxes_that_contradict_their_image_are_named_or_left_out(tmp_path: Path, method: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(40, 60)).save(tmp_path / "a.png", exif=exif)  # upright 40 x 60
    images = open_images(tmp_path)
    good = Box(1, "a.png", 5, 5, 25, 25, size=(60, 40))
    bad = [Box(2, "a.png", 5, 5, 25, 25, size=(40, 60)), Box(3, "a.png", 0.1, 0.2, 0.5, 0.6)]
    with pytest.raises(UserError, match=r"row 2: .* 60 x 40 pixels, it is upright 40 x 60: of the image before its EXIF") as error:  # fmt: skip  # noqa: E501
        embed_regions(Extractor(Colours()), images, [good, *bad], method)
    assert "row 3: 'a.png': the box 0.1, 0.2, 0.5, 0.6 looks like fractions" in str(error.value)
    rest = embed_regions(Extractor(Colours()), images, [good, *bad], method, on_error="skip")
    assert [box.number for box in rest.boxes] == [1] and set(rest.broken) == {2, 3}
