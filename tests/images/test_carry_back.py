"""A map over the input lands on the pixels that the input came from: checked with marks, and with torch's resize."""

import pytest
import torch
from torch.nn import functional as F

from transferkit.images.carry_back import carry_back, interpolation
from transferkit.images.preprocessing import Preprocessing

IMAGENET = Preprocessing.imagenet().replace(image_size=64)  # shorter side 73, crop 64
SCHEMES = {
    "shorter side, crop": IMAGENET,
    "squash": Preprocessing.vit().replace(image_size=64),
    "squash, crop": IMAGENET.replace(resize=(80, 70), crop=(64, 56)),
    "cover": Preprocessing(**{**vars(IMAGENET), "resize": (80, 80), "fit": "cover"}),
    "contain, padded": Preprocessing(**{**vars(IMAGENET), "resize": (64, 64), "crop": (64, 64), "fit": "contain"}),
    "crop larger than the image": Preprocessing(**{**vars(IMAGENET), "resize": (50, 60), "crop": (64, 64)}),
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("size", [(100, 100), (97, 140), (211, 120), (40, 33)])
def test_a_mark_comes_back_to_where_it_was(name: str, size: tuple[int, int]) -> None:
    """White on black goes through the preprocessing; its brightness in the input is the map."""
    (height, width), scheme = size, SCHEMES[name]
    for top, left in ((height // 2, width // 2), (height // 3, width // 2), (height // 2, width // 3)):
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        mark = (slice(top, top + height // 8 + 1), slice(left, left + width // 8 + 1))
        image[(slice(None), *mark)] = 255
        heat, seen = carry_back(scheme.resize_crop(image)[0].float() / 255, scheme, height, width)
        original = image[0].float() / 255
        assert heat.shape == seen.shape == (height, width) and not heat[~seen].any()
        weights = heat / heat.sum()
        rows, columns = torch.arange(height), torch.arange(width)
        truth = original * seen / (original * seen).sum()
        for axis, places in ((1, rows), (0, columns)):
            assert abs((weights.sum(axis) * places).sum() - (truth.sum(axis) * places).sum()) < 0.5  # of a pixel
        assert abs(heat.sum() / (original * seen).sum() - 1) < 0.1


def test_without_a_crop_it_is_the_library_s_resize() -> None:
    heat = torch.rand(64, 64)
    for height, width in ((128, 200), (64, 64), (300, 65)):
        ours, seen = carry_back(heat, SCHEMES["squash"], height, width)
        expected = F.interpolate(heat[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        assert seen.all()


def test_what_the_crop_cut_off_is_not_seen() -> None:
    heat, seen = carry_back(torch.ones(64, 64), IMAGENET, 146, 292)  # resized to 73 x 146, crop from (4, 41)
    assert seen[:8].sum() == seen[-10:].sum() == 0 and seen[73, 82:210].all() and not seen[73, :82].any()
    assert torch.equal(heat > 0, seen)
    assert abs(seen.float().mean() - (64 * 64) / (73 * 146)) < 0.01


def test_a_very_long_image_loses_its_ends_first() -> None:
    scheme = Preprocessing.imagenet()
    image = torch.zeros(3, 2, 1400, dtype=torch.uint8)
    image[:, :, 700:] = 255
    heat, seen = carry_back(scheme.resize_crop(image)[0].float() / 255, scheme, 2, 1400)
    assert seen.any() and heat[seen].round().equal((image[0].float() / 255)[seen])


def test_interpolation() -> None:
    weights = interpolation(torch.tensor([-0.6, -0.5, 0.25, 1.5, 2.4, 2.5]), 3)
    expected = [[0, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-6, rtol=0)
