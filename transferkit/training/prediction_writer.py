"""What a run leaves behind: predictions, embeddings, similarity metrics, and what TensorBoard shows of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from transferkit import evaluation
from transferkit.data.columns import take
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.embed import describe
from transferkit.errors import UserError
from transferkit.reports import figures, projector
from transferkit.runtime.files import atomic_path
from transferkit.runtime.ranks import joined
from transferkit.training.module import TransferModule

Columns = dict[str, pa.Array]

TOP_K = 5  # classes of each image that predict ranks

_log = logging.getLogger(__name__)


class Results(Callback):
    """Collect what test and predict steps return and write it into the run directory.

    Args:
        run: the run directory.
        top_k: how many classes of each image ``predict`` ranks, if there are as many.
    """

    def __init__(self, run: Path, top_k: int = TOP_K) -> None:
        self.run, self.top_k = run, top_k
        self.outputs: list[dict[str, Tensor]] = []
        self.written: list[Path] = []
        self.thumbnails = projector.Thumbnails([])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See the images to test on when they are decoded, before the test or in it: the projector shows them."""
        data = getattr(trainer, "datamodule", None)
        if stage == "test" and isinstance(data, ImageDataModule):
            table = data.tables[data.test_split]
            self.thumbnails = projector.Thumbnails(table.paths)
            data.tables[data.test_split] = replace(table, seen=self.thumbnails.see)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep one batch, on the CPU."""
        self.outputs.append({name: value.detach().cpu() for name, value in outputs.items()})

    on_predict_batch_end = on_test_batch_end

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where a head that was fitted on cached float32 features is given others."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule) and isinstance(pl_module, TransferModule)
        split = "predict" if trainer.predicting else data.test_split
        precision = computed_in(trainer, data, split)
        if pl_module.regime == "frozen" and data.caches_features and not precision.startswith("32"):
            _log.warning(
                "the head was fitted on float32 embeddings, these are computed in %s; add --trainer.precision 32-true "
                "to measure it on what it was fitted on",
                precision,
            )

    on_predict_start = on_test_start

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions, embeddings and similarity metrics of the tested split."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule) and isinstance(pl_module, TransferModule)
        self.write(trainer, pl_module, data.test_split)
        draw_confusion(trainer, pl_module, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions and embeddings into a folder of their own: those of a test or another predict stay."""
        assert isinstance(pl_module, TransferModule)
        self.write(trainer, pl_module, "predict")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix of the last validation."""
        draw_confusion(trainer, pl_module, "val")

    def write(self, trainer: Trainer, module: TransferModule, split: str) -> None:
        """Let the first process write all processes' outputs of a split; the others wait as long as it takes."""
        local = {name: torch.cat([output[name] for output in self.outputs]) for name in self.outputs[0]}
        self.outputs = []
        with joined() as ranks:
            parts = ranks.run_on_all(lambda: local)
            merged = {name: torch.cat([part[name] for part in parts]) for name in local}
            ranks.from_first(lambda: self.write_merged(trainer, module, split, merged))

    def write_merged(self, trainer: Trainer, module: TransferModule, split: str, merged: Mapping[str, Tensor]) -> None:
        """Write the outputs of a split, rows in any order."""
        table, order = module.data.tables[split], merged["row"].argsort()
        rows = merged["row"][order].tolist()
        embeddings = Embeddings(
            merged["embedding"][order],
            *take(table, rows),
            describe(module.as_extractor(), table, precision=computed_in(trainer, module.data, split)),
        )
        probability = merged["probability"][order].float()
        if split == "predict":
            place, names = free_folder(self.run / "predict"), module.class_names
            self.written = [place / name for name in ("predictions.parquet", "predictions.csv", "embeddings.parquet")]
            columns = prediction_columns(embeddings, probability, names, self.top_k)
            write_parquet(pa.table(columns | class_columns(probability, names)), self.written[0])
            write_csv(pa.table(columns), self.written[1])
            embeddings.save(self.written[2])
            return
        self.written = [self.run / name for name in ("predictions.parquet", "embeddings.parquet", "similarity.json")]
        self.written.append(self.run / projector.CONFIG)
        columns = prediction_columns(embeddings, probability, module.class_names, 1)
        write_parquet(pa.table(columns), self.written[0])
        embeddings.save(self.written[1])
        found = evaluation.measure(embeddings)
        evaluation.save_overall(found, self.written[2])
        for line in evaluation.remarks(embeddings, None, found):
            _log.info("similarity.json: %s", line)
        self.fill_projector(embeddings, table)

    def fill_projector(self, embeddings: Embeddings, table: ImageTable) -> None:
        """Show the rows in TensorBoard's projector, with thumbnails."""
        made = self.thumbnails.made

        def read(path: str) -> Tensor:
            return made[path] if path in made else table.read(table.row_of[path])

        shown = projector.fill_projector(self.run, "test", embeddings, read)
        if shown < len(embeddings):
            _log.info("TensorBoard's projector shows %d of %d rows, drawn by chance", shown, len(embeddings))


def computed_in(trainer: Trainer, data: ImageDataModule, split: str) -> str:
    """The precision that the embeddings of a split are computed in: cached ones always in float32."""
    return "32" if split in data.features else str(trainer.precision)


def free_folder(first: Path) -> Path:
    """Make a folder of this name, or ``NAME-2``, ``NAME-3`` and so on where it is there already.

    Raises:
        UserError: it cannot be made.
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


def ranked_columns(top_k: int) -> list[tuple[str, str]]:
    """Names of the columns of the k most probable classes and their probabilities, the first one's without a number."""
    numbers = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    return [(f"prediction{number}", f"probability{number}") for number in numbers]


def prediction_columns(embeddings: Embeddings, probability: Tensor, names: Sequence[str], top_k: int) -> Columns:
    """Path, label and the most probable classes with their probabilities; of equal ones the first in order.

    Args:
        embeddings: gives the paths and labels, N rows.
        probability: float32 (N, classes).
        names: class names in the order of the columns of ``probability``.
        top_k: how many classes, if there are as many.
    """
    top_k = min(top_k, len(names))
    batches = (probability[start : start + 1024] for start in range(0, len(probability), 1024))  # bounds the memory
    parts = [batch.sort(dim=1, descending=True, stable=True) for batch in batches]
    shares, classes = (torch.cat([part[which][:, :top_k] for part in parts]) for which in (0, 1))  # (N, top_k)
    words = pa.array(names, pa.string())
    columns = {"path": pa.array(embeddings.paths, pa.string()), "label": pa.array(embeddings.labels, pa.string())}
    for rank, (name, share) in enumerate(ranked_columns(top_k)):
        columns[name] = words.take(pa.array(classes[:, rank].numpy()))
        columns[share] = pa.array(shares[:, rank].numpy(), pa.float32())
    return columns


def class_columns(probability: Tensor, names: Sequence[str]) -> Columns:
    """The probability of every class, ``probability/CLASS``."""
    by_class = probability.T.contiguous().numpy()  # (classes, N)
    return {f"probability/{name}": pa.array(row, pa.float32()) for name, row in zip(names, by_class, strict=True)}


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a Parquet file."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a CSV file in UTF-8, text in quotes; what is null is empty."""
    with atomic_path(path) as temporary:
        pyarrow.csv.write_csv(table, temporary)


def draw_confusion(trainer: Trainer, module: LightningModule, stage: str) -> None:
    """Put the confusion matrix of the last evaluation into TensorBoard as a picture."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not (loggers and trainer.is_global_zero and isinstance(module, TransferModule)):
        return
    counts = module.by_class.get(f"{stage}/confusion")
    if counts is None:
        return
    figure = figures.confusion(counts, module.class_names, f"{stage}: {int(counts.sum())} images")
    for logger in loggers:
        logger.experiment.add_figure(f"{stage}/confusion", figure, trainer.current_epoch)
