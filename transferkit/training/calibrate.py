"""Calibrating a tested classifier on the val split, and measuring how far images are from those it was trained on."""

import logging

import torch
from torch import Tensor

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.data.seen import count_seen
from transferkit.embed import cached_features
from transferkit.extractor import Extractor
from transferkit.extractor.calibration import MOST_REFERENCES, MOST_VAL, Calibration, inner_stage
from transferkit.extractor.forward import Forward
from transferkit.similarity.cosine import drawn_rows
from transferkit.training.network import TransferNetwork

log = logging.getLogger(__name__)


def calibrate(module: TransferNetwork, data: ImageDataModule) -> Calibration | None:
    """Calibrate a classifier on the val split of its data; the distances need its train split, too.

    Of more than 5,000 images of val and 2,000 of train so many are drawn by chance. Unreadable ones are left out.

    Args:
        module: with a trained head.
        data: set up for a test, with the classes of the module.

    Returns:
        None, with a warning, if there is no labeled val split or the head was fitted on images of it.
    """
    val = data.tables.get("val")
    if val is None or None in val.labels:
        log.warning("not calibrated: %s has no labeled split val; test on the data of the fit, or add val", data.root)
        return None
    if seen := count_seen(val.paths, module.fitted_on):
        log.warning(
            "not calibrated: the head was fitted on %d images of val; test on data whose val it has not seen", seen
        )
        return None
    extractor = module.as_extractor()
    assert extractor.head is not None
    embedding, target = features(extractor, data, "val", MOST_VAL)
    if not len(embedding):
        log.warning("not calibrated: no image of val can be read; scan %s to see why", data.root)
        return None
    logits = extractor.classify(embedding.to(extractor.head.weight.dtype)).float().cpu()
    names, classifier = module.class_names, extractor.classifier_sha256()
    if "train" not in data.tables:
        return Calibration.fit(logits, target, names, classifier=classifier)
    layer = inner_stage(extractor.backbone)
    inner = extractor.forward(layer=layer)
    near, _ = features(extractor, data, "val", MOST_VAL, inner)
    train, train_target = features(extractor, data, "train", MOST_REFERENCES, inner)
    return Calibration.fit(logits, target, names, near, train, train_target, layer, classifier)


def features(
    extractor: Extractor, data: ImageDataModule, split: str, most: int, forward: Forward | None = None
) -> tuple[Tensor, Tensor]:
    """Return embeddings (N, D) and class numbers (N,) of a split, or of so many images drawn from it."""
    found = drawn_features(extractor, data.tables[split], most, forward)
    row_of = data.tables[split].row_of
    rows = torch.tensor([row_of[path] for path in found.paths], dtype=torch.long)
    return found.embedding, data.targets(split)[rows]


def drawn_features(extractor: Extractor, table: ImageTable, most: int, forward: Forward | None = None) -> Embeddings:
    """Return the embeddings of a table, or of so many images drawn from it; fewer are drawn among those of more."""
    return cached_features(extractor, table.select(drawn_rows(len(table), most, 0).tolist()), forward=forward)
