from pathlib import Path

import pytest
import torch
from torch import Tensor

from transferkit.data.augmentation import view_seed
from transferkit.data.batches import EpochBatches, FeatureBatches, ImageBatches
from transferkit.data.sources import open_images


def epoch(sampler: EpochBatches, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    items = list(sampler)
    assert all(item[0] == number for item in items) and len(items) == len(sampler)
    return [rows for _, rows in items]


def test_unshuffled_batches_follow_the_rows() -> None:
    assert epoch(EpochBatches(7, 3, shuffle=False), 5) == [[0, 1, 2], [3, 4, 5], [6]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch(EpochBatches(20, 6, shuffle=True, seed=3), 4)
    assert first == epoch(EpochBatches(20, 6, shuffle=True, seed=3), 4)
    assert sorted(row for rows in first for row in rows) == list(range(20))
    assert [len(rows) for rows in first] == [6, 6, 6, 2]
    others = [EpochBatches(20, 6, True, seed=4), EpochBatches(20, 6, True, seed=3)]
    assert first not in (epoch(others[0], 4), epoch(others[1], 5))


@pytest.mark.parametrize(("rows", "sizes"), [(7, [7]), (13, [6, 7]), (12, [6, 6]), (1, [1]), (14, [6, 6, 2])])
def test_a_lone_row_joins_the_batch_before(rows: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in epoch(EpochBatches(rows, 6, shuffle=True), 0)] == sizes


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rows", [16, 17, 18, 21, 23])
def test_processes_share_each_global_batch(rows: int, shuffle: bool) -> None:
    together = epoch(EpochBatches(rows, 8, shuffle, seed=1), 2)
    shares = [epoch(EpochBatches(rows, 4, shuffle, 1, rank, 2), 2) for rank in range(2)]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
    for number, whole in enumerate(together[:-2]):  # the one before the last may take in each process's lone row
        assert sorted(shares[0][number] + shares[1][number]) == sorted(whole)


def test_images_of_a_batch(photo_folder: Path) -> None:
    seeds = []

    def crop(image: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return image[:, :8, :8]

    table = open_images(photo_folder)
    batch = ImageBatches(table, torch.arange(len(table)) % 2, crop, seed=9)[3, [4, 1]]
    assert batch["pixels"].dtype == torch.uint8 and batch["pixels"].shape == (2, 3, 8, 8)
    assert torch.equal(batch["pixels"][0], table.read(4)[:, :8, :8])
    assert batch["target"].tolist() == [0, 1] and batch["row"].tolist() == [4, 1]
    assert seeds == [view_seed(9, 3, 4), view_seed(9, 3, 1)]


def test_views_take_turns() -> None:
    views = [torch.full((3, 2), float(number)) for number in range(2)]
    data = FeatureBatches(views, torch.tensor([5, 6, 7]))
    assert len(data) == 3
    for number in range(4):
        batch = data[number, [2, 0]]
        assert batch["embedding"].tolist() == [[number % 2] * 2] * 2
        assert batch["target"].tolist() == [7, 5] and batch["row"].tolist() == [2, 0]
