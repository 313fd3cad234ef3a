"""The callback that writes predictions, embeddings and similarity metrics into a run, and shows them in TensorBoard."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from transferkit.reports.answers import Answering, answer, answer_columns
from transferkit.reports.predictions import Columns, write_parquet
from transferkit.runtime.ranks import joined
from transferkit.training.calibrate import calibrate
from transferkit.training.module import TransferModule
from transferkit.training.predict_images import TOP_K, write_predictions

log = logging.getLogger(__name__)


class PredictionWriter(Callback):
    """Collect the outputs of test and predict steps and write them into the run directory.

    Args:
        run: the run directory.
        top_k: number of classes per image that ``predict`` ranks, at most as many as there are.
        answering: what ``predict`` says beside the classes, if the classifier is calibrated.
        calibrates: whether a test calibrates the classifier, which embeds images of val and train.
    """

    def __init__(
        self, run: Path, top_k: int = TOP_K, answering: Answering | None = None, calibrates: bool = True
    ) -> None:
        self.run, self.top_k, self.answering, self.calibrates = run, top_k, answering or Answering(), calibrates
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
        """Keep the outputs of a batch, on the CPU."""
        self.outputs.append({name: value.detach().cpu() for name, value in outputs.items()})

    on_predict_batch_end = on_test_batch_end

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if a head that was fitted on cached float32 embeddings is evaluated in another precision."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule) and isinstance(pl_module, TransferModule)
        split = "predict" if trainer.predicting else data.test_split
        precision = computed_in(trainer, data, split)
        if pl_module.regime == "frozen" and data.caches_features and not precision.startswith("32"):
            log.warning(
                'the head was fitted on float32 embeddings, these are computed in %s; add `precision="32-true"` to '
                "evaluate it on such embeddings",
                precision,
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions, embeddings and similarity metrics of the tested split."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule) and isinstance(pl_module, TransferModule)
        self.write(trainer, pl_module, data.test_split)
        draw_confusion(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn as before a test; raise if a set or an abstention is asked for that the classifier cannot give.

        Raises:
            UserError: the classifier is not calibrated.
        """
        self.on_test_start(trainer, pl_module)
        assert isinstance(pl_module, TransferModule)
        self.answering.require(pl_module.as_extractor().calibration)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions and embeddings into a new folder, beside those of a test or another predict."""
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
        paths, labels, splits, groups = take(table, rows)
        cached = split in module.data.features
        extractor = module.predicting.run(module.as_extractor()) if cached else module.as_extractor()
        metadata = describe(extractor, table, precision=None if cached else str(trainer.precision))
        embeddings = Embeddings(merged["embedding"][order], paths, labels, splits, metadata, groups, table.kind)
        probability = merged["probability"][order].float()
        if split == "predict":
            self.written = write_predictions(
                self.run, module.as_extractor(), module.task, embeddings, table.select(rows), probability,
                self.top_k, self.answering,
            )  # fmt: skip
            return
        self.written = [self.run / name for name in ("predictions.parquet", "embeddings.parquet", "similarity.json")]
        self.written.append(self.run / projector.CONFIG)
        columns = module.task.columns(embeddings.paths, embeddings.labels, probability, module.class_names, 1)
        if not module.task.calibrates:
            columns |= module.task.more_columns(probability, module.class_names)  # what a comparison of two runs ranks
        write_parquet(columns | self.calibrate(trainer, module, split, probability), self.written[0])
        embeddings.save(self.written[1])
        found = evaluation.measure(embeddings)
        evaluation.save_overall(found, self.written[2])
        for line in evaluation.caveats(embeddings, None, found):
            log.info("similarity.json: %s", line)
        self.fill_projector(embeddings, table)

    def calibrate(self, trainer: Trainer, module: TransferModule, split: str, probability: Tensor) -> Columns:
        """Calibrate on val, and return the calibrated probability of each prediction, unless val itself was tested."""
        try:
            wanted = self.calibrates and module.task.calibrates and not trainer.fast_dev_run  # type: ignore[attr-defined]  # set in its constructor
            calibration = calibrate(module, module.data) if wanted else None
        except UserError as error:  # the test stands without it
            log.warning("not calibrated: %s", error)
            calibration = None
        if calibration is None:
            return {}
        module.calibration = calibration
        calibration.save(self.run)
        if split == "val":
            return {}
        return answer_columns(answer(calibration, probability, None, Answering()), [], None)

    def fill_projector(self, embeddings: Embeddings, table: ImageTable) -> None:
        """Write the rows for TensorBoard's projector, with thumbnails."""
        made = self.thumbnails.made

        def read(path: str) -> Tensor:
            return made[path] if path in made else table.read(table.row_of[path])

        shown = projector.fill_projector(self.run, "test", embeddings, read)
        if shown < len(embeddings):
            log.info("TensorBoard's projector shows %d of %d rows, drawn at random", shown, len(embeddings))


def computed_in(trainer: Trainer, data: ImageDataModule, split: str) -> str:
    """Return the precision that the embeddings of a split are computed in; cached ones are always float32."""
    return "32" if split in data.features else str(trainer.precision)


def draw_confusion(trainer: Trainer, module: LightningModule, stage: str) -> None:
    """Add the confusion matrix of the last evaluation to TensorBoard as a figure."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not (loggers and trainer.is_global_zero and isinstance(module, TransferModule)):
        return
    counts = module.by_class.get(f"{stage}/confusion")
    if counts is None:
        return
    figure = figures.confusion(counts, module.class_names, f"{stage}: {int(counts.sum())} images")
    for logger in loggers:
        logger.experiment.add_figure(f"{stage}/confusion", figure, trainer.current_epoch)
