"""Augmentation: the seed decides the pixels, and nothing else does."""

import random
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from transferkit.images.augmentation import Augmentation, Preset, view_seed
from transferkit.images.preprocessing import Preprocessing

SMALL = Preprocessing(40, (24, 32), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "torchvision")
PRESETS = get_args(Preset)
RANDOM = ["light", "strong"]


@pytest.fixture
def image() -> Tensor:
    """A smooth photograph-like gradient, uint8 (3, 45, 61), unlike its mirror image."""
    y, x = torch.meshgrid(torch.arange(45), torch.arange(61), indexing="ij")
    return torch.stack([x * 4, y * 5, (x + y) * 2]).to(torch.uint8)


@pytest.mark.parametrize("preset", PRESETS)
def test_views_have_the_size_of_the_preprocessing(preset: Preset, image: Tensor) -> None:
    augment = Augmentation(preset, SMALL)
    for seed in range(40):
        view = augment(image, seed)
        assert view.shape == (3, 24, 32)
        assert view.dtype == torch.uint8
    assert augment(image[:, :1, :1], 0).shape == (3, 24, 32)


def test_none_is_the_preprocessing(image: Tensor) -> None:
    assert torch.equal(Augmentation("none", SMALL)(image, 7), SMALL.resize_crop(image))


def test_trivial_is_one_operation_of_torchvision_on_the_crop(image: Tensor) -> None:
    """The paper's: here with the same draws, from torchvision."""
    augment = Augmentation("trivial", SMALL)
    for seed in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = v2.TrivialAugmentWide()(SMALL.resize_crop(image))
        assert torch.equal(augment(image, seed), expected)


@pytest.mark.parametrize("preset", RANDOM)
def test_the_seed_alone_decides(preset: Preset, image: Tensor) -> None:
    augment, original = Augmentation(preset, SMALL), image.clone()
    first = [augment(image, seed) for seed in range(15)]
    assert len({view.numpy().tobytes() for view in first}) == 15
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    again = [augment(image, seed) for seed in reversed(range(15))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert torch.equal(image, original)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_global_generators_are_left_alone(preset: Preset, image: Tensor) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    Augmentation(preset, SMALL)(image, 5)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert before == after


@pytest.mark.parametrize("preset", RANDOM)
def test_views_stay_like_the_image_and_are_mirrored_half_the_time(preset: Preset, image: Tensor) -> None:
    augment = Augmentation(preset, SMALL)
    mirrored = 0
    for seed in range(100):
        red = augment(image, seed)[0].float()
        mirrored += bool(red[:, :16].mean() > red[:, 16:].mean())
    # Binomial(100, 0.5): mean 50, standard deviation 5; an operation that reverses the grey scale adds few.
    assert 30 < mirrored < 70


class Views(Dataset[Tensor]):
    def __init__(self, image: Tensor) -> None:
        self.image, self.augment = image, Augmentation("strong", SMALL)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> Tensor:
        return self.augment(self.image, view_seed(1, 2, row))


def test_worker_count_does_not_matter(image: Tensor) -> None:
    def load(**options: Any) -> Tensor:
        return torch.cat(list(DataLoader(Views(image), batch_size=3, **options)))

    assert torch.equal(load(), load(num_workers=2))


def test_view_seeds_differ_in_every_argument() -> None:
    seeds = {view_seed(seed, epoch, row) for seed in range(10) for epoch in range(10) for row in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)
