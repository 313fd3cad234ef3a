"""Images of a table that judge an export in int8: how far it is from float32, and how often it is right."""

import torch
from torch import Tensor

from transferkit.data.image_table import ImageTable
from transferkit.embed.samples import TRAIN, read_rows, spread
from transferkit.extractor import Extractor
from transferkit.extractor.int8_export import Judge, Outputs
from transferkit.probe.linear import fit_linear, logits_of

IMAGES = 1000  # most that judge; evenly spaced
VAL = "val"


def judge_of(extractor: Extractor, table: ImageTable) -> Judge:
    """Return the judging images: those of ``val`` or, without such a split, all.

    The extractor's head classifies. Without a head for classes, a linear probe does: softmax regression at C = 1 on
    standardized float32 embeddings of ``train``. Without labels or splits, or for targets that are not classes, nothing
    does, and only embeddings are compared.

    Args:
        extractor: the extractor.
        table: images, with labels and splits if they have any.

    Raises:
        UserError: none of the images can be read.
    """
    rows = [row for row, split in enumerate(table.splits) if split == VAL]
    named = f"{VAL}" if rows else table.source or "the images"
    chosen, pixels = read_rows(extractor, table, spread(rows or list(range(len(table))), IMAGES))
    what = f"{len(chosen):,} images of {named}"
    is_head = extractor.head is not None and extractor.record.get("target", "class") == "class"
    names = extractor.class_names if is_head else table.class_names if table.kind == "class" else []
    known = [row for row in chosen if table.labels[row] in names]
    if not rows or not known or table.kind != "class":
        return Judge(pixels, what)
    places = torch.tensor([chosen.index(row) for row in known])
    target = torch.tensor([names.index(str(table.labels[row])) for row in known])
    if is_head:
        return Judge(pixels, what, lambda outputs: share(outputs["logits"][places], target), "the head")
    if (probe := fit_probe(extractor, table, names)) is None:
        return Judge(pixels, what)
    weight, bias = probe

    def accuracy(outputs: Outputs) -> float:
        return share(logits_of(outputs["embedding"][places], weight, bias, "zscore"), target)

    return Judge(pixels, what, accuracy, "a linear probe")


def fit_probe(extractor: Extractor, table: ImageTable, names: list[str]) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a linear probe on ``train``; None if that has fewer than two classes."""
    rows = [row for row, split in enumerate(table.splits) if split == TRAIN and table.labels[row] in names]
    if len({table.labels[row] for row in rows}) < 2:
        return None
    chosen, pixels = read_rows(extractor, table, spread(rows, IMAGES))
    embedding = torch.cat([extractor(batch).cpu() for batch in torch.split(pixels, 16)])
    target = torch.tensor([names.index(str(table.labels[row])) for row in chosen])
    fitted = fit_linear(embedding, target, len(names), standardization="zscore", c=1.0)
    return fitted.weight, fitted.bias


def share(logits: Tensor, target: Tensor) -> float:
    """Return the share of rows whose highest logit is the target's."""
    return float((logits.argmax(1) == target).double().mean())
