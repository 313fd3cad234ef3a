import itertools
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import DataLoader

from transferkit.data.batches import (
    EmbeddingBatchDataset,
    EpochBatchSampler,
    EpochLoader,
    ImageBatchDataset,
    default_batch_size,
)
from transferkit.data.image_table import open_images
from transferkit.images.augmentation import view_seed


def epoch(sampler: EpochBatchSampler, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    items = list(sampler)
    assert all(item[0] == number for item in items) and len(items) == len(sampler)
    return [rows for _, rows, _ in items]


def test_unshuffled_batches_follow_the_rows() -> None:
    assert epoch(EpochBatchSampler(7, 3, shuffle=False), 5) == [[0, 1, 2], [3, 4, 5], [6]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch(EpochBatchSampler(20, 6, shuffle=True, seed=3), 4)
    assert first == epoch(EpochBatchSampler(20, 6, shuffle=True, seed=3), 4)
    assert sorted(row for rows in first for row in rows) == list(range(20))
    assert [len(rows) for rows in first] == [6, 6, 6, 2]
    others = [EpochBatchSampler(20, 6, True, seed=4), EpochBatchSampler(20, 6, True, seed=3)]
    assert first not in (epoch(others[0], 4), epoch(others[1], 5))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 50, 255, 256, 257, 100_000])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_has_eight_steps_unless_images_are_few(rows: int, world_size: int) -> None:
    size = default_batch_size(rows, world_size)
    steps = -(-rows // (size * world_size))
    assert 4 <= size <= 32 and steps <= max(8, -(-rows // (32 * world_size)))
    assert steps >= 7 or size == 4, "rounded up, eight batches may be seven"


def test_balanced_epochs_have_each_class_equally_often_and_each_row_before_any_again() -> None:
    target = torch.tensor([0] * 30 + [1] * 2 + [2] * 10)  # mean 14
    sampler = EpochBatchSampler(len(target), 5, shuffle=True, seed=3, balance=target)
    counts = torch.zeros(len(target))
    for number in range(6):
        rows = torch.tensor([row for batch in epoch(sampler, number) for row in batch])
        each = torch.bincount(rows, minlength=len(target))
        assert torch.bincount(target[rows]).tolist() == [14, 14, 14]
        assert each[:30].max() == 1 and set(each[30:32].tolist()) == {7} and set(each[32:].tolist()) == {1, 2}
        counts += each
    assert (counts[:30] > 0).all(), "the rows of a large class take turns"
    assert epoch(sampler, 2) == epoch(EpochBatchSampler(len(target), 5, True, 3, balance=target), 2)
    shares = [EpochBatchSampler(len(target), 3, True, 3, rank, 2, target) for rank in range(2)]
    together = EpochBatchSampler(len(target), 6, True, 3, balance=target)
    for one, two, both in zip(epoch(shares[0], 1), epoch(shares[1], 1), epoch(together, 1), strict=True):
        assert sorted(one + two) == sorted(both)


def test_balance_of_equal_classes_is_every_row_once() -> None:
    target = torch.arange(12) % 3
    rows = [row for batch in epoch(EpochBatchSampler(12, 5, True, balance=target), 0) for row in batch]
    assert sorted(rows) == list(range(12))


@pytest.mark.parametrize(("rows", "sizes"), [(7, [7]), (13, [6, 7]), (12, [6, 6]), (1, [1]), (14, [6, 6, 2])])
def test_a_lone_row_joins_the_batch_before(rows: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in epoch(EpochBatchSampler(rows, 6, shuffle=True), 0)] == sizes


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_share_each_global_batch(world_size: int, shuffle: bool) -> None:
    for size, rows in itertools.product(range(1, 9), range(1, 41)):
        told = f"{rows} rows, {size} a process"
        together = epoch(EpochBatchSampler(rows, size * world_size, shuffle, seed=1), 2)
        samplers = [EpochBatchSampler(rows, size, shuffle, 1, rank, world_size) for rank in range(world_size)]
        shares = [epoch(sampler, 2) for sampler in samplers]
        seen = sorted(row for share in shares for batch in share for row in batch)
        alone = shuffle and rows < min(2, size) * world_size  # too few to share: each process trains on all
        assert seen == sorted([*range(rows)] * (world_size if alone else 1)), told
        assert len({len(share) for share in shares}) == 1, f"{told}: one process would wait for the others for ever"
        if shuffle:
            least = min(2, size, rows)
            assert all(least <= len(batch) <= max(size + 2, rows if alone else 0) for batch in itertools.chain(*shares))
        for number, whole in enumerate(together[:-2]):  # the one before the last may take in what is left of the last
            assert sorted(itertools.chain(*(share[number] for share in shares))) == sorted(whole), told


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 18, 21, 23])
def test_the_mean_gradient_of_the_processes_is_that_of_their_global_batch(rows: int) -> None:
    features = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    data = EmbeddingBatchDataset([features], torch.zeros(rows, dtype=torch.long))
    samplers = [EpochBatchSampler(rows, 4, True, 1, rank, 3) for rank in range(3)]
    for items in zip(*samplers, strict=True):
        batches = [data[item] for item in items]
        scaled = [batch["embedding"].mean(0) * batch.get("scale", 1.0) for batch in batches]
        whole = features[sorted({row for _, part, _ in items for row in part})]
        assert torch.allclose(torch.stack(scaled).mean(0), whole.mean(0))  # the gradient of a linear loss


def test_images_of_a_batch(photo_folder: Path) -> None:
    seeds = []

    def crop(image: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return image[:, :8, :8]

    table = open_images(photo_folder)
    batch = ImageBatchDataset(table, torch.arange(len(table)) % 2, crop, seed=9)[3, [4, 1], 1.0]
    assert batch["pixels"].dtype == torch.uint8 and batch["pixels"].shape == (2, 3, 8, 8)
    assert torch.equal(batch["pixels"][0], table.read(4)[:, :8, :8])
    assert batch["target"].tolist() == [0, 1] and batch["row"].tolist() == [4, 1]
    assert seeds == [view_seed(9, 3, 4), view_seed(9, 3, 1)]


def test_views_take_turns() -> None:
    views = [torch.full((3, 2), float(number)) for number in range(2)]
    data = EmbeddingBatchDataset(views, torch.tensor([5, 6, 7]))
    assert len(data) == 3
    for number in range(4):
        batch = data[number, [2, 0], 1.0]
        assert batch["embedding"].tolist() == [[number % 2] * 2] * 2
        assert batch["target"].tolist() == [7, 5] and batch["row"].tolist() == [2, 0]


def test_a_process_without_a_share_gets_an_empty_batch(photo_folder: Path) -> None:
    table = open_images(photo_folder).select([0])
    (item,) = EpochBatchSampler(1, 4, shuffle=False, rank=1, world_size=2)
    images = ImageBatchDataset(table, torch.tensor([3]), lambda image, seed: image)[item]
    assert images["pixels"].shape[:2] == (0, 3) and images["target"].dtype == torch.int64
    features = EmbeddingBatchDataset([torch.ones(1, 7)], torch.tensor([3]))[item]
    assert features["embedding"].shape == (0, 7) and features["row"].shape == (0,)


def test_lightning_leaves_the_sampler_alone_and_sets_its_epoch() -> None:
    """Why EpochBatchSampler is a DistributedSampler: these are the rules of Lightning that it relies on."""
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    data = EmbeddingBatchDataset([torch.ones(8, 2)], torch.zeros(8, dtype=torch.long))
    sampler = EpochBatchSampler(8, 2, shuffle=True)
    ours = EpochLoader(data, batch_size=None, sampler=sampler)
    connector = trainer._data_connector
    assert connector._requires_distributed_sampler(DataLoader([0] * 8)), "else nothing is tested"
    assert not connector._requires_distributed_sampler(ours)
    assert connector._prepare_dataloader(ours, shuffle=True, mode=RunningStage.TRAINING).sampler is sampler
    _set_sampler_epoch(ours, 3)
    assert sampler.epoch == 3
    assert isinstance(ours, _Stateful), "else a fit cannot go on from within an epoch"
