"""One image as a path, bytes, file, PIL.Image, array and tensor: the same pixels, those of the definition."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor, to_tensor

from tests.image_corpus import Case, broken, good, photo
from transferkit.images.error import ImageError
from transferkit.images.from_python import is_single, pixels_of

PHOTO = photo(9, 7)
CHW = torch.from_numpy(PHOTO).permute(2, 0, 1)


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("case", good(), ids=lambda case: case.name)
def test_every_form_of_a_file_has_its_pixels(case: Case, tmp_path: Path) -> None:
    assert case.pixels is not None
    path = tmp_path / "image"
    path.write_bytes(case.data)
    with path.open("rb") as file:
        forms = [path, str(path), case.data, bytearray(case.data), memoryview(case.data), file, BytesIO(case.data)]
        forms += [{"bytes": case.data, "path": None}, {"bytes": None, "path": str(path)}]
        for form in forms:
            assert np.array_equal(pixels_of(form).permute(1, 2, 0).numpy(), case.pixels), type(form)
    picture = opened(case.data)
    assert np.array_equal(pixels_of(picture).permute(1, 2, 0).numpy(), case.pixels), "not loaded yet"
    picture.load()  # it can still be used


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_that_pillow_has_loaded_has_the_pixels_of_its_file() -> None:
    differing = []
    for case in good():
        picture = opened(case.data)
        try:
            picture.load()
        except OSError:
            continue
        try:
            found = pixels_of(picture).permute(1, 2, 0).numpy()
        except ImageError as error:
            differing.append(f"{case.name}: {error}")
            continue
        differing += [] if np.array_equal(found, case.pixels) else [case.name]
    assert differing == []


@pytest.mark.parametrize("case", broken(), ids=lambda case: case.name)
def test_broken_bytes_are_refused(case: Case) -> None:
    with pytest.raises(ImageError, match=case.reason):
        pixels_of(case.data)


@pytest.mark.parametrize(
    "form",
    [
        PHOTO,
        np.asfortranarray(PHOTO),
        np.repeat(PHOTO, 2, axis=0)[::2],
        Image.fromarray(PHOTO),
        CHW,
        pil_to_tensor(Image.fromarray(PHOTO)),
        to_tensor(Image.fromarray(PHOTO)),
        v2.functional.to_dtype(CHW, torch.float64, scale=True),
        PHOTO / 255,
        PHOTO.astype(np.uint16) * 257,
        np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)]),
        torch.cat([CHW, torch.full((1, 9, 7), 255, dtype=torch.uint8)]),
    ],
    ids=lambda form: f"{type(form).__name__} {getattr(form, 'dtype', '')} {getattr(form, 'shape', '')}",
)
def test_pixels_in_memory_are_taken_as_they_are(form: Any) -> None:
    assert torch.equal(pixels_of(form), CHW)


@pytest.mark.parametrize(
    "gray", [PHOTO[..., 0], PHOTO[..., :1], torch.from_numpy(PHOTO[..., 0]), CHW[:1], PHOTO[..., 0] / 255]
)
def test_gray_becomes_rgb(gray: Any) -> None:
    assert torch.equal(pixels_of(gray), CHW[:1].expand(3, -1, -1))


def test_transparency_is_composed_on_white() -> None:
    clear = np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)])
    for form in (clear, Image.fromarray(clear), torch.from_numpy(clear).permute(2, 0, 1)):
        assert (pixels_of(form) == 255).all()
    black = np.zeros((4, 5), bool)
    black[0] = True
    assert pixels_of(black)[:, 0].eq(255).all() and pixels_of(black)[:, 1:].eq(0).all()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (PHOTO.astype(np.int64), "array .* of int64; convert it to uint8"),
        (CHW.float(), "tensor .* of float32 outside 0..1; give pixels before they are normalized"),
        (CHW.float() / 255 - 0.5, "outside 0..1"),
        (np.full((4, 4), np.nan), "outside 0..1"),
        (PHOTO.transpose(2, 0, 1), r"is not one image; its channels come last: transpose\(1, 2, 0\)"),
        (torch.zeros(2, 3, 4, 4), "is not one image"),
        (torch.zeros(3, 0, 4), "is not one image"),
        (np.full((4, 4), 700, np.uint16), "16-bit values below 4096"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "floating-point pixels"),
        (3, "int is not a path"),
        (None, "NoneType is not a path"),
        ([1, 2], "list is not a path"),
        ("nothing.png", "no such file"),
    ],
)
def test_what_is_not_an_image_is_refused(form: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        pixels_of(form)


def test_a_file_in_text_mode_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as file, pytest.raises(ImageError, match="open it with mode 'rb'"):
        pixels_of(file)


def test_the_frame_and_the_size_that_were_chosen_are_kept() -> None:
    frames = [Image.fromarray(photo(8, 8, seed)).quantize(4) for seed in range(2)]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    second = opened(buffer.getvalue())
    second.seek(1)
    assert np.array_equal(pixels_of(second).permute(1, 2, 0).numpy(), np.asarray(second.convert("RGB")))
    jpeg = BytesIO()
    Image.fromarray(photo(64, 64)).save(jpeg, "JPEG")
    small = opened(jpeg.getvalue())
    small.draft("RGB", (16, 16))
    assert pixels_of(small).shape == (3, 16, 16)


def test_one_image_and_several_are_told_apart() -> None:
    assert all(map(is_single, ["a", Path("a"), b"", BytesIO(), Image.new("L", (1, 1)), PHOTO, CHW, {"bytes": b""}]))
    assert not any(map(is_single, [[], ["a"], iter("a"), PHOTO[None], CHW[None], np.array(["a"], object)]))
