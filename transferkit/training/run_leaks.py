"""Near-duplicates of a tested run's images in other splits, where the run has their embeddings."""

from pathlib import Path

import torch

from transferkit import similarity
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.embed import cached_features, knows_some
from transferkit.extractor.calibration import MOST_REFERENCES, inner_stage
from transferkit.reports.result_files import ResultFolder, is_fine_tuned
from transferkit.runtime.files import unwritable
from transferkit.search.leaks import FILE, save_leaks
from transferkit.training.calibrate import drawn_features
from transferkit.training.network import TransferNetwork

SAME = 1e-6
"""Cosine distance of the same image, up to rounding."""
MOST_COMPARED = 5_000
"""Images of train and val at most that are compared at the end of a fit."""


def leaks_of_run(module: TransferNetwork, data: ImageDataModule, run: Path) -> None:
    """Write ``leaks.json`` of a tested run on data with the split train.

    The feature cache has the training images of a frozen backbone. Those of a fine-tuned one, 2,000 of each split at
    most, are compared at the stage before the last, where images of a class are not yet all alike, and where its
    calibration has embedded most of them.

    Args:
        module: the network that was tested.
        data: set up for the test.
        run: directory with the ``embeddings.parquet`` of the test.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        (run / FILE).unlink(missing_ok=True)  # of an earlier test
    except OSError as error:  # a folder
        raise unwritable(run / FILE, error) from error
    tested = Embeddings.load(run / "embeddings.parquet")
    others = {name: table for name, table in data.tables.items() if name not in (data.test_split, "predict")}
    if "train" not in others:
        return
    splits: dict[str, str | None] = dict.fromkeys(tested.paths, data.test_split)
    for name, table in others.items():
        splits |= dict.fromkeys(table.paths, name)
    extractor, left_out = module.as_extractor(), 0
    known = all(knows_some(extractor, table) for table in others.values())
    fine_tuned = is_fine_tuned(ResultFolder(run).yaml("config.yaml")) or not known
    if not fine_tuned:
        found = [tested, *(cached_features(extractor, table) for table in others.values())]
    else:
        inner = extractor.forward(layer=inner_stage(extractor.backbone))
        every = (data.tables[data.test_split], *others.values())
        found = [drawn_features(extractor, table, MOST_REFERENCES, inner) for table in every]
        left_out = sum(max(0, len(table) - MOST_REFERENCES) for table in every)
    save_leaks(Embeddings.concat(map(bare, found)), splits, run, left_out, fine_tuned)


def copies_of_train(data: ImageDataModule) -> int:
    """Return how many val images are nearly the same as a training image, of a fit that holds their embeddings.

    Of others, of augmented ones and of many images it is 0: the comparison must not be felt.

    Args:
        data: after the fit.
    """
    names = ("train", "val")
    if data.augmentation != "none" or not set(names) <= data.features.keys() & data.tables.keys():
        return 0
    train, val = (data.features[name][0].float() for name in names)
    together = torch.cat([train, val])
    if len(together) > MOST_COMPARED or not len(val) or not together.isfinite().all():
        return 0
    cosine = similarity.top_k(val, train, 1)[0][:, 0]
    usual = float((1 - cosine).median())  # where all images of a class are alike, none of them is a copy
    near = (1 - cosine <= max(SAME, usual / 10)) & (cosine >= similarity.usual_threshold(together))
    return int(near.sum())


def bare(table: Embeddings) -> Embeddings:
    """Return a table without metadata, which differ between a test and the cache."""
    return Embeddings(table.embedding, table.paths, table.labels, table.splits, {})
