"""What a run leaves behind: predictions, embeddings, similarity metrics and the confusion matrix."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, distributed

from transferkit import similarity
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.sources import ImageTable
from transferkit.embed import describe
from transferkit.embeddings import Embeddings
from transferkit.files import atomic_path
from transferkit.module import TransferModule


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

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions, embeddings and similarity metrics of the tested split."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule) and isinstance(pl_module, TransferModule)
        self.write(trainer, pl_module, data.tables[data.test_split], with_similarity=True)
        draw_confusion(trainer, pl_module, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions and embeddings."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule) and isinstance(pl_module, TransferModule)
        self.write(trainer, pl_module, data.tables["predict"], with_similarity=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix of the last validation."""
        draw_confusion(trainer, pl_module, "val")

    def write(self, trainer: Trainer, module: TransferModule, table: ImageTable, with_similarity: bool) -> None:
        """Gather all processes' outputs and write them once."""
        merged = gather({name: torch.cat([output[name] for output in self.outputs]) for name in self.outputs[0]})
        self.outputs = []
        if not trainer.is_global_zero:
            return
        order = merged["row"].argsort()
        rows = merged["row"][order].tolist()
        embeddings = Embeddings(
            embedding=merged["embedding"][order],
            paths=[table.paths[row] for row in rows],
            labels=[table.labels[row] for row in rows],
            splits=[table.splits[row] for row in rows],
            metadata=describe(module.as_extractor(), table),
        )
        self.written = [self.run / "predictions.parquet", self.run / "embeddings.parquet"]
        write_predictions(self.written[0], embeddings, merged["probability"][order], module.class_names)
        embeddings.save(self.written[1])
        if with_similarity:
            values = similarity.evaluate(embeddings.embedding, embeddings.labels).overall
            self.written.append(self.run / "similarity.json")
            with atomic_path(self.written[-1]) as temporary:
                temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
    if f"{stage}/confusion" not in module.by_class:
        return
    from matplotlib.figure import Figure

    matrix = module.by_class[f"{stage}/confusion"]
    size = min(12.0, 3 + 0.3 * len(matrix))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow((matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", title=f"{stage}: {int(matrix.sum())} images")
    if len(matrix) <= 40:
        names = [drawable(name) for name in module.class_names]
        axes.set_xticks(range(len(matrix)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(matrix)), names, parse_math=False)
    if len(matrix) <= 15:
        for row, values in enumerate(matrix.tolist()):
            for column, value in enumerate(values):
                axes.text(column, row, value, ha="center", va="center", fontsize=8)
    for logger in loggers:
        logger.experiment.add_figure(f"{stage}/confusion", figure, trainer.current_epoch)


def drawable(name: str) -> str:
    """A class name with a box for each character that the font of our pictures does not have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties())).get_charmap()
    return "".join(character if ord(character) in glyphs else "□" for character in name)
