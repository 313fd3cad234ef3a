"""Images without labels, each view with what the teacher makes of it, as a LightningDataModule."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transferkit.data.batches import Batch, EpochBatchSampler, Item, loader_of, loading_processes, scaled
from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import leave_out_broken, raise_broken, verify
from transferkit.data.splits import assign_splits
from transferkit.embed.stream import View
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.shared_views import Cells, Targets, teach, views_of


class ViewDataset(Dataset[Batch]):
    """Batches of fixed views; epoch e has view e modulo their number.

    A batch: ``pixels`` uint8 (B, 3, h, w), ``teacher`` float32 (B, D), ``patches`` float32 (B, cells, C), ``row`` int64
    (B,).

    Args:
        table: the images.
        views: what the student sees of them.
        targets: what the teacher makes of each view.
    """

    def __init__(self, table: ImageTable, views: Sequence[View], targets: Sequence[Targets]) -> None:
        self.table, self.views, self.targets = table, views, targets

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: Item) -> Batch:
        epoch, rows, scale = item
        number = epoch % len(self.views)
        index, targets = torch.tensor(rows, dtype=torch.long), self.targets[number]
        pixels = torch.stack([self.views[number].transform(self.table.read(row), row) for row in rows])
        batch = {"pixels": pixels, "teacher": targets.embedding[index], "patches": targets.patches[index]}
        return scaled({**batch, "row": index}, scale, None)


class DistillDataModule(LightningDataModule):
    """Images of train and val, without their labels, and what the teacher makes of them.

    Args:
        table: images with a split, see :func:`without_labels`.
        preprocessing: of the student.
        views: number of fixed views per training image.
        batch_size: images per step.
        num_workers: loading processes; by default as for ``fit``.
        seed: of the views and the order.
    """

    def __init__(
        self,
        table: ImageTable,
        preprocessing: Preprocessing,
        views: int,
        batch_size: int,
        num_workers: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.preprocessing, self.views, self.batch_size, self.seed = preprocessing, views, batch_size, seed
        self.table = table
        self.tables = {name: table.select(row for row, split in enumerate(table.splits) if split == name)
                       for name in ("train", "val")}  # fmt: skip
        self.num_workers = loading_processes(self.tables.values()) if num_workers is None else num_workers
        self.targets: dict[str, list[Targets]] = {}

    def ask(self, teacher: Extractor, cells: Cells) -> None:
        """Let the teacher embed each view once, or take it from the cache.

        Args:
            teacher: sees what the student sees, on the device to use.
            cells: grid of the patches.

        Raises:
            UserError: an image cannot be read any more.
        """

        def check(broken: Mapping[str, str]) -> None:
            raise_broken(broken, self.table.source)

        for name, table in self.tables.items():
            count = self.views if name == "train" else 1
            self.targets[name] = teach(teacher, table, cells, count, self.seed, check)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled training batches."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return batches of the plain view of val, in path order."""
        return self.loader("val", shuffle=False)

    def loader(self, name: str, shuffle: bool) -> DataLoader[Batch]:
        """Return a loader over one split."""
        table, targets = self.tables[name], self.targets[name]
        dataset = ViewDataset(table, views_of(self.preprocessing, len(targets), self.seed), targets)
        sampler = EpochBatchSampler(len(table), self.batch_size, shuffle, self.seed)
        if self.trainer:  # Lightning draws the first order of a resumed fit before it sets the epoch
            sampler.resume(self.trainer.fit_loop)
        return loader_of(dataset, sampler, self.num_workers)


def without_labels(table: ImageTable, val_fraction: float, seed: int) -> ImageTable:
    """Return the images to learn from and to validate on; labels are dropped before anything is drawn.

    Given splits are kept, and images of test are left out. Val is drawn where none is given.

    Args:
        table: any images.
        val_fraction: share of the training images that val is drawn from.
        seed: of the draw.

    Raises:
        UserError: fewer than two images to learn from, or none to validate on.
    """
    bare = replace(table, labels=(None,) * len(table), kind="class")
    bare = bare.select(row for row, split in enumerate(bare.splits) if split != "test")
    bare = assign_splits(bare, val_fraction, 0.0, seed)
    for name, least in (("train", 2), ("val", 1)):
        if (count := bare.splits.count(name)) < least:
            raise UserError(f"{table.source or table.root} has {count} images of {name}; give {least} or more")
    return bare


def readable(table: ImageTable, on_error: str) -> ImageTable:
    """Return a table without the images that cannot be read; each is decoded once, unless it is remembered.

    Raises:
        UserError: there are some, with ``on_error="fail"``; all are named.
    """
    broken = {path: str(fault) for path, fault in verify(table).items()}
    return leave_out_broken(table, broken, on_error)


def images_to_relate(embedding: Tensor, most: int, seed: int) -> Tensor:
    """Return the teacher's embeddings of the images that each one is related to: float32 (Q, D), Q at most ``most``.

    They are drawn once, by the seed; a queue of the last batches would have others, but the teacher does not change.
    """
    order = torch.randperm(len(embedding), generator=torch.Generator().manual_seed(seed))
    return embedding[order[:most].sort().values]
