"""Which rows make a batch, and what a batch holds: both a function of seed, epoch and row alone."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from transferkit.data.augmentation import view_seed
from transferkit.data.sources import ImageTable

Batch = dict[str, Tensor]
Item = tuple[int, list[int]]


class EpochBatches(DistributedSampler[Item]):
    """Batches of rows as ``(epoch, rows)``; the order of an epoch depends on seed and epoch only.

    So a resumed fit sees the batches that an uninterrupted one would, whatever the number of workers.
    Each process takes every ``world_size``-th row of a global batch; no row is padded or repeated.
    (A DistributedSampler by type, so that Lightning leaves it as it is.)

    Args:
        rows: how many rows there are.
        batch_size: rows a batch and process.
        shuffle: draw a new order each epoch.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self, rows: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.rank, self.num_replicas = rank, world_size
        self.epoch = 0
        self.begun = (0, 0)  # an epoch, and how many of its batches a resumed fit has behind it

    def batches(self) -> list[list[int]]:
        """The batches of this process in the current epoch."""
        order = list(range(self.rows))
        if self.shuffle:
            generator = torch.Generator().manual_seed(view_seed(self.seed, self.epoch, self.rows))
            order = torch.randperm(self.rows, generator=generator).tolist()
        size = self.batch_size * self.num_replicas
        starts = list(range(0, self.rows, size))
        if self.shuffle and len(starts) > 1 and self.rows - starts[-1] <= self.num_replicas:
            starts.pop()  # BatchNorm cannot train on a lone row: it joins the batch before
        ends = [*starts[1:], self.rows]
        shares = (order[start:end][self.rank :: self.num_replicas] for start, end in zip(starts, ends, strict=True))
        return [share for share in shares if share]

    def __iter__(self) -> Iterator[Item]:
        epoch, behind = self.begun
        return ((self.epoch, rows) for rows in self.batches()[behind if epoch == self.epoch else 0 :])

    def __len__(self) -> int:
        return len(self.batches())

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

    A batch: ``pixels`` uint8 (B, 3, h, w), ``target`` int64 (B,), ``row`` int64 (B,).

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
        epoch, rows = item
        pixels = [self.transform(self.table.read(row), view_seed(self.seed, epoch, row)) for row in rows]
        index = torch.tensor(rows)
        return {"pixels": torch.stack(pixels), "target": self.targets[index], "row": index}


class FeatureBatches(Dataset[Batch]):
    """Embeddings computed beforehand.

    A batch: ``embedding`` float32 (B, D), ``target`` int64 (B,), ``row`` int64 (B,).

    Args:
        views: embeddings (N, D) of each augmented pass; epoch e reads view e modulo their number.
        targets: class index of each row.
    """

    def __init__(self, views: Sequence[Tensor], targets: Tensor) -> None:
        self.views, self.targets = views, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: Item) -> Batch:
        epoch, rows = item
        index = torch.tensor(rows)
        view = self.views[epoch % len(self.views)]
        embedding = view if len(rows) == len(view) and rows == list(range(len(view))) else view[index]
        return {"embedding": embedding, "target": self.targets[index], "row": index}


def leave_signals_to_main(number: int) -> None:
    """Begin a loading process: Ctrl-C reaches it as well, but it is the main process that ends it.

    Where that one leaves while a batch is handed over, the thread that does so has nothing to complain of.
    """

    def complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, OSError | EOFError):
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = complain
