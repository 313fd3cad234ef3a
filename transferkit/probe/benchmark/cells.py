"""Cells of a benchmark: one directory each, written atomically, with a key of all that the figures depend on."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.runtime.files import lock
from transferkit.runtime.json_files import read_json, write_json
from transferkit.runtime.text import for_file_name

CELL = "cell.json"
MEASURES: Mapping[Kind, Sequence[str]] = {  # summarized over seeds; the first is what a cell is judged by
    "class": ("top1", "mean_per_class", "knn_top1"),
    "labels": ("map", "f1_macro", "f1_micro"),
    "number": ("r2", "mae", "spearman"),
}


@dataclass(frozen=True)
class Approach:
    """An extractor to benchmark.

    Attributes:
        extractor: torchvision name, Hugging Face id or directory, exported directory, or checkpoint.
        weights: ``DEFAULT``, ``none`` (random) or a file of weights.
        pooling: how features become one embedding; ``None`` is the extractor's own.
        preprocessing: fields to override, such as ``{image_size: 160}``; ``None`` is the weights' own.
        engine: what runs the network, see :mod:`transferkit.extractor.engine`; ``None`` is torch.
        precision: of the forward pass; ``None`` is ``32``.
        seed: of random weights.
    """

    extractor: str
    weights: str = "DEFAULT"
    pooling: str | None = None
    preprocessing: Mapping[str, Any] | None = None
    engine: str | None = None
    precision: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Dataset:
    """Images to benchmark on.

    Attributes:
        images: folder, manifest, ``digits``, or the name of a torchvision dataset.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        multilabel: whether a manifest's label is several, ``cat|dog``; lists are anyway.
    """

    images: str
    image_root: str | None = None
    multilabel: bool = False


@dataclass(frozen=True)
class Cell:
    """One approach on one dataset; accuracies are shares of the test images, in [0, 1].

    Attributes:
        approach: its name in the benchmark.
        dataset: its name in the benchmark.
        key: SHA-256 over all that the figures depend on; None if nothing could be measured.
        features: SHA-256 over all that the embeddings depend on, as in the feature cache.
        error: why nothing could be measured, or None.
        library: ``torchvision`` or ``transformers``.
        parameters: number of parameters of the backbone.
        embed_dim: width of the embedding.
        images_per_second: speed of extraction with decoding; None if the embeddings were in the cache.
        train: number of images fitted in the sweep.
        val: number of images to select on.
        test: number of images to report on.
        top1: accuracy of the linear probe.
        top1_interval: its 95 % Wilson interval.
        mean_per_class: mean of the linear probe's accuracies per class.
        knn_top1: accuracy of the k nearest neighbors.
        knn_k: the chosen k.
        class_mean_top1: accuracy of the nearest class mean.
        few_shot: n images per class -> mean and standard deviation of the accuracy over the draws.
        cosine_gap: mean cosine within classes minus that between classes, over all labeled images.
        warnings: warnings of the probe.
        seed: of the drawn splits.
        c: inverse strength of regularization of the linear probe.
        standardization: of the linear probe.
        weights_sha256: SHA-256 over the backbone's tensors.
        preprocessing: from image to pixels, as plain types.
        seeds: where there are several, those that ``over_seeds`` is of.
        over_seeds: name of :data:`MEASURES` -> mean and sample standard deviation over the seeds.
        target: what is predicted: ``class``, ``labels`` or ``number``.
        measures: of the linear probe of labels or a number, by the names of :data:`MEASURES`; None if undefined.
        intervals: of a number, name -> 95 % bootstrap interval.
    """

    approach: str
    dataset: str
    key: str | None = None
    features: str | None = None
    error: str | None = None
    library: str | None = None
    parameters: int | None = None
    embed_dim: int | None = None
    images_per_second: float | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    mean_per_class: float | None = None
    knn_top1: float | None = None
    knn_k: int | None = None
    class_mean_top1: float | None = None
    few_shot: dict[str, tuple[float, float]] = field(default_factory=dict)
    cosine_gap: float | None = None
    warnings: list[str] = field(default_factory=list)
    seed: int = 0
    c: float | None = None
    standardization: str | None = None
    weights_sha256: str | None = None
    preprocessing: dict[str, Any] | None = None
    seeds: list[int] = field(default_factory=list)
    over_seeds: dict[str, tuple[float, float]] = field(default_factory=dict)
    target: Kind = "class"
    measures: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def measure(self, name: str) -> float | None:
        """Return one of its :data:`MEASURES`; None if it is undefined, or nothing could be measured."""
        value: float | None = getattr(self, name) if self.target == "class" else self.measures.get(name)
        return value

    @property
    def is_measured(self) -> bool:
        """Whether there are figures."""
        return self.top1 is not None or bool(self.measures)

    @property
    def score(self) -> float | None:
        """What the cell is judged by: accuracy, mean average precision or R²."""
        return self.measure(MEASURES[self.target][0])

    @property
    def score_interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of the score; None for an end that is unknown."""
        found = self.top1_interval if self.target == "class" else self.intervals.get(MEASURES[self.target][0])
        return found or (None, None)


def cell_folder(out: Path, approach: str, dataset: str, seed: int | None = None) -> Path:
    """Return the directory of a cell: readable, and different for any two pairs of names.

    Args:
        out: directory of the benchmark.
        approach: its name.
        dataset: its name.
        seed: of a cell beside the first of its names.
    """
    name = for_file_name(f"{dataset}-{approach}")
    digest = hashlib.sha256(json.dumps([approach, dataset]).encode()).hexdigest()[:8]
    return out / "cells" / f"{name}-{digest}{'' if seed is None else f'-seed-{seed}'}"


def over_seeds(first: Cell, others: Sequence[Cell | None]) -> Cell:
    """Return the cell of the first seed with mean and spread over it and those of other seeds."""
    measured = [cell for cell in (first, *others) if cell is not None and cell.is_measured]
    if not others or not measured:
        return first
    spread: dict[str, tuple[float, float]] = {}
    for name in MEASURES[measured[0].target]:
        values = [value for cell in measured if (value := cell.measure(name)) is not None]
        spread |= {name: (mean(values), stdev(values) if len(values) > 1 else 0.0)} if values else {}
    failed = [f"seed {cell.seed} could not be measured: {cell.error}" for cell in others if cell and cell.error]
    seeds = [cell.seed for cell in measured]
    return replace(first, seeds=seeds, over_seeds=spread, warnings=[*first.warnings, *failed])


def not_in_table(out: Path, folders: Collection[Path]) -> int:
    """Count the saved cells of a benchmark's directory that are not among some folders."""
    return sum(file.parent not in folders for file in (out / "cells").glob(f"[!.]*/{CELL}"))


def write_cell(cell: Cell, folder: Path) -> None:
    """Write ``cell.json`` into a directory that still has its temporary name."""
    write_json(folder / CELL, asdict(cell))


def read_cell(folder: Path) -> Cell | None:
    """Read the cell of a directory; None if it is missing, damaged or of another version."""
    try:
        return Cell(**read_json(folder / CELL))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a benchmark's directory for this process; the system releases it however the process ends.

    Raises:
        UserError: another process holds the lock, or the directory cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
        held = lock(out / ".lock")
    except BlockingIOError as error:
        raise UserError(f"another benchmark is writing into {out}; wait for it or give another `out`") from error
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another `out`") from error
    try:
        yield
    finally:
        if held is not None:
            os.close(held)
