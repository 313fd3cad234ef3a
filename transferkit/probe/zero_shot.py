"""Classes told apart by words alone: predictions of images, and their metrics where the images have labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError

from transferkit.data.embeddings import Embeddings
from transferkit.embed import space_of
from transferkit.extractor import Extractor
from transferkit.extractor.core import head_logits
from transferkit.extractor.word_head import TEMPLATES, probabilities, reads_unit_rows, word_head
from transferkit.probe.class_counts import MacroF1, TopK
from transferkit.reports.predictions import class_columns, most_probable, prediction_columns, write_csv, write_parquet
from transferkit.runtime.json_files import write_json

RECORD = "zeroshot.json"
TOP_K = 5  # classes per image in the tables
MOST_COLUMNS = 1000  # classes with a column of their own
ECE_BINS = 15


@dataclass(frozen=True)
class ZeroShot:
    """What words say about images.

    Attributes:
        embeddings: of the images, N rows.
        class_names: the classes, K.
        templates: sentences that the classes were put into.
        logits: float32 (N, K), the whole model's ``logits_per_image`` where there is one template.
        probability: float32 (N, K), by a softmax over the classes, or a sigmoid for each where the model has one.
        sigmoid: which of the two.
        extractor: name and space of the extractor, in plain types.
    """

    embeddings: Embeddings
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    logits: Tensor
    probability: Tensor
    sigmoid: bool
    extractor: dict[str, Any]

    @cached_property
    def known(self) -> list[int]:
        """Rows with a label that is one of the classes."""
        classes = set(self.class_names)
        return [row for row, label in enumerate(self.embeddings.labels) if label in classes]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """``test/acc``, ``test/acc_top5``, ``test/f1_macro`` and, for a softmax, ``test/ece`` of :attr:`known`.

        They are the metrics that a fit logs; empty without labels.
        """
        rows, classes = self.known, len(self.class_names)
        if not rows or classes < 2:
            return {}
        number = {name: index for index, name in enumerate(self.class_names)}
        target = torch.tensor([number[str(self.embeddings.labels[row])] for row in rows])
        shares = self.logits[torch.tensor(rows)].softmax(1)
        chosen: dict[str, Metric] = {"test/acc": TopK(), "test/f1_macro": MacroF1(classes)}
        if classes > TOP_K:
            chosen["test/acc_top5"] = TopK(TOP_K)
        if not self.sigmoid:
            chosen["test/ece"] = MulticlassCalibrationError(classes, n_bins=ECE_BINS, validate_args=False)
        return {name: float(metric(shares, target)) for name, metric in chosen.items()}


def classify_by_words(
    extractor: Extractor, embeddings: Embeddings, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> ZeroShot:
    """Classify images by the names of the classes.

    Args:
        extractor: of a model of images and texts, with an embedding in the shared space.
        embeddings: the extractor's, of the images.
        class_names: the classes.
        templates: see :func:`~transferkit.extractor.word_head.word_head`.

    Raises:
        UserError: see :func:`~transferkit.extractor.word_head.word_head`.
    """
    head = word_head(extractor, class_names, templates).cpu()
    with torch.no_grad():
        logits = head_logits(head, embeddings.embedding, reads_unit_rows(extractor))
    sigmoid = extractor.text.sigmoid
    described = {"extractor": extractor.name, **space_of(extractor).to_metadata()}
    return ZeroShot(
        embeddings, tuple(class_names), tuple(templates), logits, probabilities(logits, sigmoid), sigmoid, described
    )


def save_zero_shot(found: ZeroShot, folder: Path, more: Mapping[str, Any] | None = None) -> list[Path]:
    """Write ``predictions.csv``, ``predictions.parquet``, ``embeddings.parquet``, ``zeroshot.json``, ``metrics.json``.

    Args:
        found: the predictions.
        folder: the directory, which is made.
        more: further entries of ``zeroshot.json``.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = found.class_names
    ranked = most_probable(found.probability, names, TOP_K)
    columns = prediction_columns(found.embeddings.paths, found.embeddings.labels, ranked)
    files = [folder / f"predictions.{suffix}" for suffix in ("csv", "parquet")]
    write_csv(columns, files[0])
    every = class_columns(found.probability, names) if len(names) <= MOST_COLUMNS else {}
    write_parquet(columns | every, files[1])
    files += [folder / "embeddings.parquet", folder / RECORD, folder / "metrics.json"]
    found.embeddings.save(files[2])
    rest = {"classes": list(names), "templates": list(found.templates), "extractor": found.extractor}
    counts = {"images": len(found.embeddings), "scored": len(found.known), "sigmoid": found.sigmoid}
    write_json(files[3], {**rest, **counts, **(more or {})})
    write_json(files[4], found.metrics)
    return files
