"""Predictions of a checkpoint for images without labels, and the files of ``predict``; Lightning is not needed."""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.data.integrity import leave_out_broken
from transferkit.embed import cached_features, describe
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.reports.answers import Answering, answer, answer_columns
from transferkit.reports.predictions import Columns, write_csv, write_parquet
from transferkit.training.predicting import Predicting
from transferkit.training.tasks import Task, task_of

TOP_K = 5  # classes per image that predict ranks

log = logging.getLogger(__name__)


def predict_images(
    extractor: Extractor,
    table: ImageTable,
    run: Path,
    top_k: int,
    answering: Answering,
    predicting: Predicting,
    on_error: str = "fail",
) -> list[Path]:
    """Embed images, or take their embeddings from the cache, classify them, and write the files into a run.

    Args:
        extractor: with a head, on the device to use.
        table: the images.
        run: directory of the run, in which a new folder is made.
        top_k: number of classes per image in the table.
        answering: what is said beside the classes, if the classifier is calibrated.
        predicting: engine and precision.
        on_error: ``fail`` names unreadable images and writes nothing, ``skip`` leaves them out.

    Returns:
        The files, see :func:`write_predictions`.

    Raises:
        UserError: images cannot be read, something cannot be computed as asked, or the files cannot be written.
    """
    predicting.chosen(extractor, table)
    found = cached_features(extractor, table)
    table = leave_out_broken(table, found.metadata["broken"], on_error)
    embeddings = replace(found, metadata=describe(extractor, table))
    task = task_of(extractor.record.get("target", "class"), record=extractor.record)
    probability = task.activate(extractor.classify(embeddings.embedding)).cpu()
    extractor.run_with("torch")  # the distances from the training images were measured by it
    return write_predictions(run, extractor, task, embeddings, table, probability, top_k, answering)


def write_predictions(
    run: Path,
    extractor: Extractor,
    task: Task,
    embeddings: Embeddings,
    table: ImageTable,
    probability: Tensor,
    top_k: int,
    answering: Answering,
) -> list[Path]:
    """Write ``predictions.parquet``, ``predictions.csv`` and ``embeddings.parquet`` into a new folder of a run.

    Args:
        run: directory of the run.
        extractor: with a head; PyTorch runs it.
        task: what is predicted.
        embeddings: of the images, (N, D).
        table: the images, in the order of the embeddings.
        probability: float32 (N, outputs), what the task makes of the head's outputs.
        top_k: number of classes per image in the table.
        answering: what is said beside the classes, if the classifier is calibrated.

    Returns:
        The three files, in this order.

    Raises:
        UserError: they cannot be written.
    """
    folder, names = free_folder(run / "predict"), extractor.class_names
    written = [folder / name for name in ("predictions.parquet", "predictions.csv", "embeddings.parquet")]
    columns = task.columns(embeddings.paths, embeddings.labels, probability, names, top_k)
    more, texts = answers(extractor, task, table, probability, columns["prediction"], answering)
    write_parquet(columns | more | task.more_columns(probability, names), written[0])
    write_csv(columns | texts, written[1])
    embeddings.save(written[2])
    return written


def answers(
    extractor: Extractor, task: Task, table: ImageTable, probability: Tensor, preds: pa.Array, answering: Answering
) -> tuple[Columns, Columns]:
    """Return what a calibrated classifier says beside the classes, for Parquet and for CSV; else nothing."""
    calibration, inner = extractor.calibration, None
    if not task.calibrates:
        return {}, {}
    if calibration is None:
        log.info("probabilities are not calibrated: test this classifier on data with a val split to calibrate it")
        return {}, {}
    if calibration.knows_train and answering.unlike != "none":
        inner = cached_features(extractor, table, forward=extractor.forward(layer=calibration.layer)).embedding
        if len(inner) < len(table):
            log.warning("no distances from the training images: %d can no longer be read", len(table) - len(inner))
            inner = None
    found = answer(calibration, probability, inner, answering)
    for remark in found.remarks:
        log.info(remark)
    columns, texts = (answer_columns(found, extractor.class_names, preds, as_text) for as_text in (False, True))
    return columns, texts


def free_folder(first: Path) -> Path:
    """Make a folder of this name, or ``NAME-2``, ``NAME-3`` and so on if it exists, and return it.

    Raises:
        UserError: the folder cannot be made.
    """
    folder, number = first, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        except OSError as error:
            raise UserError(f"cannot write the folder {folder}: {error.strerror}") from error
