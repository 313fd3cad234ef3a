"""What a run leaves behind: predictions, embeddings, similarity metrics, and what TensorBoard shows of them."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, distributed

from transferkit import evaluation, pictures, projector
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.sources import ImageTable
from transferkit.embed import describe
from transferkit.embeddings import Embeddings
from transferkit.files import atomic_path
from transferkit.module import TransferModule

_log = logging.getLogger(__name__)


class Results(Callback):
    """Collect what test and predict steps return and write it into the run directory.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.outputs: list[dict[str, Tensor]] = []
        self.written: list[Path] = []

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
        self.write(trainer, pl_module, data.test_split, with_similarity=True)
        draw_confusion(trainer, pl_module, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions and embeddings into a folder of their own: the test's beside it stay."""
        assert isinstance(pl_module, TransferModule)
        self.write(trainer, pl_module, "predict", "predict", with_similarity=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix of the last validation."""
        draw_confusion(trainer, pl_module, "val")

    def write(
        self, trainer: Trainer, module: TransferModule, split: str, folder: str = "", *, with_similarity: bool
    ) -> None:
        """Gather all processes' outputs of a split and write them once."""
        merged = gather({name: torch.cat([output[name] for output in self.outputs]) for name in self.outputs[0]})
        self.outputs = []
        if not trainer.is_global_zero:
            return
        table, order = module.data.tables[split], merged["row"].argsort()
        rows = merged["row"][order].tolist()
        embeddings = Embeddings(
            embedding=merged["embedding"][order],
            paths=[table.paths[row] for row in rows],
            labels=[table.labels[row] for row in rows],
            splits=[table.splits[row] for row in rows],
            metadata=describe(module.as_extractor(), table, precision=computed_in(trainer, module.data, split)),
        )
        place = self.run / folder
        self.written = [place / "predictions.parquet", place / "embeddings.parquet"]
        write_predictions(self.written[0], embeddings, merged["probability"][order], module.class_names)
        embeddings.save(self.written[1])
        if with_similarity:
            self.written += [self.run / "similarity.json", self.run / projector.CONFIG]
            found = evaluation.measure(embeddings)
            evaluation.save_overall(found, self.written[2])
            for line in evaluation.remarks(embeddings, None, found):
                _log.info("similarity.json: %s", line)
            self.fill_projector(embeddings, table)

    def fill_projector(self, embeddings: Embeddings, table: ImageTable) -> None:
        """Show the rows in TensorBoard's projector, with thumbnails."""
        row_of = {path: row for row, path in enumerate(table.paths)}
        shown = projector.fill_projector(self.run, "test", embeddings, lambda path: table.read(row_of[path]))
        if shown < len(embeddings):
            _log.info("TensorBoard's projector shows %d of %d rows, drawn by chance", shown, len(embeddings))


def computed_in(trainer: Trainer, data: ImageDataModule, split: str) -> str:
    """The precision that the embeddings of a split are computed in: cached ones always in float32."""
    return "32" if split in data.features else str(trainer.precision)


def gather(local: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes, joined."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return local
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, local)
    return {name: torch.cat([part[name] for part in parts]) for name in local}


def write_predictions(path: Path, embeddings: Embeddings, probability: Tensor, names: list[str]) -> None:
    """Parquet with path, label, prediction and the probability of the prediction.

    Args:
        path: the file to write.
        embeddings: gives the paths and labels, N rows.
        probability: float (N, classes).
        names: class names in the order of the columns of ``probability``.
    """
    best, index = probability.float().max(1)
    columns = {
        "path": pa.array(embeddings.paths, pa.string()),
        "label": pa.array(embeddings.labels, pa.string()),
        "prediction": pa.array([names[i] for i in index.tolist()], pa.string()),
        "probability": pa.array(best.numpy(), pa.float32()),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def draw_confusion(trainer: Trainer, module: LightningModule, stage: str) -> None:
    """Put the confusion matrix of the last evaluation into TensorBoard as a picture."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not (loggers and trainer.is_global_zero and isinstance(module, TransferModule)):
        return
    counts = module.by_class.get(f"{stage}/confusion")
    if counts is None:
        return
    figure = pictures.confusion(counts, module.class_names, f"{stage}: {int(counts.sum())} images")
    for logger in loggers:
        logger.experiment.add_figure(f"{stage}/confusion", figure, trainer.current_epoch)
