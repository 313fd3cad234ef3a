"""Which rows make a batch, and what a batch holds: both a function of seed, epoch and row alone."""

import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from transferkit.data.image_table import ImageTable
from transferkit.images.augmentation import view_seed

Batch = dict[str, Tensor]
Item = tuple[int, list[int], float]


class EpochBatches(DistributedSampler[Item]):
    """Batches of rows as ``(epoch, rows, scale)``; the order of an epoch depends on seed and epoch only.

    So a resumed fit sees the batches that an uninterrupted one would, whatever the number of workers.
    Each process takes every ``world_size``-th row of a global batch, and all have the same number of batches, since
    each step may wait for all. No row is padded or repeated: to measure on, a process may get an empty batch. To
    train on, where each process' batch is of two rows or more it gets no lone row, with which BatchNorm cannot train:
    a small last batch joins the one before, and where there are too few rows to share, each process trains on all of
    them as one would.

    ``scale`` is the number of the rows over the mean number of all processes. With the mean loss multiplied by it,
    the mean of the processes' gradients is the gradient of the global batch.
    (A DistributedSampler by type, so that Lightning leaves it as it is.)

    Args:
        rows: how many rows there are.
        batch_size: rows a batch and process.
        shuffle: draw a new order each epoch, to train on.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self, rows: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        least = min(2, batch_size) * world_size if shuffle else 1
        self.rows, self.shuffle, self.seed = rows, shuffle, seed
        self.rank, self.num_replicas = (rank, world_size) if rows >= least else (0, 1)
        self.ends = cut(rows, batch_size * world_size, least)
        self.epoch = 0
        self.begun = (0, 0)  # an epoch, and how many of its batches a resumed fit has behind it

    def batches(self) -> list[tuple[list[int], float]]:
        """Rows and scale of each batch of this process in the current epoch."""
        order = list(range(self.rows))
        if self.shuffle:
            generator = torch.Generator().manual_seed(view_seed(self.seed, self.epoch, self.rows))
            order = torch.randperm(self.rows, generator=generator).tolist()
        wholes = [order[start:end] for start, end in itertools.pairwise([0, *self.ends])]
        shares = [whole[self.rank :: self.num_replicas] for whole in wholes]
        return [
            (share, len(share) * self.num_replicas / len(whole)) for share, whole in zip(shares, wholes, strict=True)
        ]

    def __iter__(self) -> Iterator[Item]:
        epoch, behind = self.begun
        return ((self.epoch, *batch) for batch in self.batches()[behind if epoch == self.epoch else 0 :])

    def __len__(self) -> int:
        return len(self.ends)

    def resume(self, loop: Any) -> None:
        """Go on where Lightning's fit loop is: at the beginning of an epoch, or within one."""
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
        within = epochs.ready > epochs.processed
        self.set_epoch(epochs.processed + int(within and batches.is_last_batch))
        if within and self.shuffle and not batches.is_last_batch:
            self.begun = self.epoch, batches.current.processed

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch


def cut(rows: int, size: int, least: int) -> list[int]:
    """The ends of batches of so many rows; a last one of fewer than ``least`` joins the one before."""
    ends = [*range(size, rows, size), rows] if rows else []
    if len(ends) > 1 and rows - ends[-2] < least:
        del ends[-2]
    return ends


def scaled(batch: Batch, scale: float) -> Batch:
    """The batch, with ``scale`` as its factor of the loss where it is not 1: a step on embeddings is that short."""
    return batch if scale == 1 else {**batch, "scale": torch.tensor(scale)}


class EpochLoader(DataLoader[Batch]):
    """A DataLoader that a fit can go on from within an epoch: its sampler knows where.

    (It has no state of its own, but the two methods: by them Lightning tells a loader that can be resumed.)
    """

    def state_dict(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to do."""


class ImageBatches(Dataset[Batch]):
    """Decoded and preprocessed images.

    A batch: ``pixels`` uint8 (B, 3, h, w), ``target`` int64 (B,), ``row`` int64 (B,), and ``scale`` where it is not 1.
    An empty one has no size: its pixels are (0, 3, 0, 0).

    Args:
        table: the images.
        targets: class index of each row, -1 where there is no label.
        transform: (image uint8 (3, H, W), seed) -> uint8 (3, h, w).
        seed: seed of the augmentation.
    """

    def __init__(
        self, table: ImageTable, targets: Tensor, transform: Callable[[Tensor, int], Tensor], seed: int = 0
    ) -> None:
        self.table, self.targets, self.transform, self.seed = table, targets, transform, seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: Item) -> Batch:
        epoch, rows, scale = item
        images = [self.transform(self.table.read(row), view_seed(self.seed, epoch, row)) for row in rows]
        pixels = torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        index = torch.tensor(rows, dtype=torch.long)
        return scaled({"pixels": pixels, "target": self.targets[index], "row": index}, scale)


class FeatureBatches(Dataset[Batch]):
    """Embeddings computed beforehand.

    A batch: ``embedding`` float32 (B, D), ``target`` int64 (B,), ``row`` int64 (B,), and ``scale`` where it is not 1.

    Args:
        views: embeddings (N, D) of each augmented pass; epoch e reads view e modulo their number.
        targets: class index of each row.
    """

    def __init__(self, views: Sequence[Tensor], targets: Tensor) -> None:
        self.views, self.targets = views, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: Item) -> Batch:
        epoch, rows, scale = item
        index = torch.tensor(rows, dtype=torch.long)
        view = self.views[epoch % len(self.views)]
        embedding = view if len(rows) == len(view) and rows == list(range(len(view))) else view[index]
        return scaled({"embedding": embedding, "target": self.targets[index], "row": index}, scale)


def leave_signals_to_main(number: int) -> None:
    """Begin a loading process: Ctrl-C reaches it as well, but it is the main process that ends it.

    Where that one leaves while a batch is handed over, the thread that does so has nothing to complain of.
    """

    def complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, OSError | EOFError):
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = complain
