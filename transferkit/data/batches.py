"""The sampler and the datasets of a DataLoader: a batch is a function of seed, epoch and row only."""

import itertools
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from transferkit.data.image_table import ImageTable
from transferkit.images.augmentation import view_seed
from transferkit.runtime.cores import cores

Batch = dict[str, Tensor]
Item = tuple[int, list[int], float]

BATCH_SIZE, LEAST_BATCH_SIZE, STEPS = 32, 4, 8  # rows per step, and the steps that an epoch has by default


class EpochBatchSampler(DistributedSampler[Item]):
    """Sampler of batches ``(epoch, rows, scale)``; the order of an epoch depends on seed and epoch only.

    So a resumed fit gets the batches that an uninterrupted one would, for any number of workers.
    Each process takes every ``world_size``-th row of a global batch, and all have the same number of batches, since
    each step may wait for all. No row is padded or repeated. For evaluation a process may get an empty batch. For
    training, if the batch size per process is at least 2, no process gets a single row, with which BatchNorm cannot
    train: a small last batch is merged into the one before, and if there are too few rows to share, each process
    trains on all of them.

    ``scale`` is the number of rows divided by the mean number over all processes. With the mean loss multiplied by
    it, the mean of the processes' gradients is the gradient of the global batch.

    It is a DistributedSampler because that is what Lightning does not replace and whose ``set_epoch`` it calls; both
    are tested. Its own ``__init__``, which divides single rows, is not called.

    Args:
        rows: number of rows.
        batch_size: rows per batch and process.
        shuffle: draw a new order each epoch, for training.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
        balance: class number (N,) of each row, to draw each class equally often per epoch; see :func:`balanced`.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        balance: Tensor | None = None,
    ) -> None:
        self.balance = balance
        rows = rows if balance is None else len(balanced(balance, torch.Generator()))
        least = min(2, batch_size) * world_size if shuffle else 1
        self.rows, self.shuffle, self.seed = rows, shuffle, seed
        self.rank, self.num_replicas = (rank, world_size) if rows >= least else (0, 1)
        self.ends = cut(rows, batch_size * world_size, least)
        self.epoch = 0
        self.begun = (0, 0)  # an epoch, and how many of its batches were done before a fit was resumed

    def wholes(self) -> list[list[int]]:
        """Return the rows of each global batch, which the processes share, in the current epoch."""
        order = list(range(self.rows))
        if self.shuffle:
            generator = torch.Generator().manual_seed(view_seed(self.seed, self.epoch, self.rows))
            drawn = torch.arange(self.rows) if self.balance is None else balanced(self.balance, generator)
            order = drawn[torch.randperm(self.rows, generator=generator)].tolist()
        return [order[start:end] for start, end in itertools.pairwise([0, *self.ends])]

    def batches(self) -> list[tuple[list[int], float]]:
        """Return rows and scale of each batch of this process in the current epoch."""
        wholes = self.wholes()
        shares = [whole[self.rank :: self.num_replicas] for whole in wholes]
        return [
            (share, len(share) * self.num_replicas / len(whole)) for share, whole in zip(shares, wholes, strict=True)
        ]

    def __iter__(self) -> Iterator[Item]:
        epoch, done = self.begun
        return ((self.epoch, *batch) for batch in self.batches()[done if epoch == self.epoch else 0 :])

    def __len__(self) -> int:
        return len(self.ends)

    def resume(self, loop: Any) -> None:
        """Continue where Lightning's fit loop is: at the beginning of an epoch, or within one."""
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
        within = epochs.ready > epochs.processed
        self.set_epoch(epochs.processed + int(within and batches.is_last_batch))
        if within and self.shuffle and not batches.is_last_batch:
            self.begun = self.epoch, batches.current.processed

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this at the start of each one."""
        self.epoch = epoch


def default_batch_size(rows: int, world_size: int = 1) -> int:
    """Return the rows per step and process: 32, or fewer where an epoch of training would have fewer than 8 steps.

    A few images in large batches are too few steps to learn from: 50 images of ten classes in 5 epochs, ten steps,
    end at 69.9 % with ``full`` and 77.5 % with ``lp-ft``, with batches of 8 at 88.0 % and 83.3 % (digits, ResNet18 of
    CIFAR-10, five draws; python -m tests.bench.bench_accuracy --datasets digits-5).

    >>> default_batch_size(50), default_batch_size(250), default_batch_size(10_000)
    (7, 32, 32)

    Args:
        rows: images to train on.
        world_size: number of processes, which share a step.
    """
    return max(LEAST_BATCH_SIZE, min(BATCH_SIZE, -(-rows // (STEPS * world_size))))


def balanced(target: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows of which each class has equally many: the mean number per class, rounded.

    A class with fewer rows has each of them, often enough, before any once more; of one with more, some are drawn.

    Args:
        target: class number (N,) of each row.
        generator: draws them.

    >>> rows = balanced(torch.tensor([0, 0, 0, 0, 0, 1]), torch.Generator())
    >>> (rows < 5).sum().item(), (rows == 5).sum().item()
    (3, 3)
    """
    classes = [torch.nonzero(target == number)[:, 0] for number in torch.unique(target)]
    each = max(1, round(len(target) / max(1, len(classes))))
    drawn = [
        torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-each // len(rows)))])[:each]
        for rows in classes
    ]
    return torch.cat(drawn) if drawn else target


def cut(rows: int, size: int, least: int) -> list[int]:
    """Return the end of each batch of ``size`` rows; a last one of fewer than ``least`` is merged into the one before.

    >>> cut(10, 4, least=1), cut(10, 4, least=3)
    ([4, 8, 10], [4, 10])
    """
    ends = [*range(size, rows, size), rows] if rows else []
    if len(ends) > 1 and rows - ends[-2] < least:
        del ends[-2]
    return ends


def scaled(batch: Batch, scale: float, weights: Tensor | None) -> Batch:
    """Return the batch with ``scale`` if it is not 1: a step on embeddings is so short that the tensor would count.

    Of rows that have weights the batch has those, too.
    """
    if weights is not None:
        batch = {**batch, "weight": weights[batch["row"]]}
    return batch if scale == 1 else {**batch, "scale": torch.tensor(scale)}


class EpochLoader(DataLoader[Batch]):
    """A DataLoader that can resume within an epoch; its sampler stores the position.

    Lightning recognizes a loader that can be resumed by the two methods. They have nothing to do.
    """

    def state_dict(self) -> dict[str, int]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do nothing."""


class ImageBatchDataset(Dataset[Batch]):
    """Batches of decoded and preprocessed images.

    A batch: ``pixels`` uint8 (B, 3, h, w), ``target`` int64 (B,), ``row`` int64 (B,), ``scale`` if it is not 1, and
    ``weight`` float32 (B,) if rows have one.
    The pixels of an empty batch are (0, 3, 0, 0).

    Args:
        table: the images.
        targets: class index of each row, -1 for no label.
        transform: (image uint8 (3, H, W), seed) -> uint8 (3, h, w).
        seed: seed of the augmentation.
        weights: of each row in the loss.
    """

    def __init__(
        self,
        table: ImageTable,
        targets: Tensor,
        transform: Callable[[Tensor, int], Tensor],
        seed: int = 0,
        weights: Tensor | None = None,
    ) -> None:
        self.table, self.targets, self.transform, self.seed, self.weights = table, targets, transform, seed, weights

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: Item) -> Batch:
        epoch, rows, scale = item
        images = [self.transform(self.table.read(row), view_seed(self.seed, epoch, row)) for row in rows]
        pixels = torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        index = torch.tensor(rows, dtype=torch.long)
        return scaled({"pixels": pixels, "target": self.targets[index], "row": index}, scale, self.weights)


class EmbeddingBatchDataset(Dataset[Batch]):
    """Batches of embeddings that were computed beforehand.

    A batch: ``embedding`` float32 (B, D), ``target`` int64 (B,), ``row`` int64 (B,), ``scale`` if it is not 1, and
    ``weight`` float32 (B,) if rows have one.

    Args:
        views: embeddings (N, D) of each augmented pass; epoch e uses view e modulo their number.
        targets: class index of each row.
        weights: of each row in the loss.
    """

    def __init__(self, views: Sequence[Tensor], targets: Tensor, weights: Tensor | None = None) -> None:
        self.views, self.targets, self.weights = views, targets, weights

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: Item) -> Batch:
        epoch, rows, scale = item
        index = torch.tensor(rows, dtype=torch.long)
        view = self.views[epoch % len(self.views)]
        embedding = view if len(rows) == len(view) and rows == list(range(len(view))) else view[index]
        return scaled({"embedding": embedding, "target": self.targets[index], "row": index}, scale, self.weights)


def loader_of(dataset: Dataset[Batch], sampler: Any, workers: int) -> EpochLoader:
    """Return a loader of the batches that a sampler names."""
    return EpochLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_main,
        generator=torch.Generator(),  # its seeds for the workers must not change the training's random numbers
        pin_memory=torch.cuda.is_available(),
    )


def leave_signals_to_main(number: int) -> None:
    """Initialize a loading process: ignore Ctrl-C, since the main process ends it.

    If the main process ends while a batch is sent to it, the error of the sending thread is not shown.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, OSError | EOFError):
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = show


def loading_processes(tables: Iterable[ImageTable]) -> int:
    """Return how many processes load the images: one per core but one, at most 8; none if all are in memory."""
    return 0 if all(table.in_memory for table in tables) else max(1, min(8, cores() - 1))
