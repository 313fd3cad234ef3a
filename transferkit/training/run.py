"""A run from Python: its metrics, its predictions for other images, its report and its plots."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.manifest import MANIFEST_SUFFIXES
from transferkit.embed import embed
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.images.from_python import is_single
from transferkit.reports.result_files import ResultFolder
from transferkit.runtime.verbosity import showing_progress
from transferkit.similarity import class_codes, principal_axes
from transferkit.training.metrics_table import read_rows
from transferkit.training.run_directory import checkpoint_of, read_metrics, write_metrics
from transferkit.training.tasks import task_of

if TYPE_CHECKING:  # Lightning and Matplotlib take seconds to import; a prediction needs neither, and no report
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from transferkit.data.datamodule import ImageDataModule


class Prediction(NamedTuple):
    """What a run says of an image.

    Attributes:
        label: the most probable class; of several labels those above their thresholds, between bars; the number.
        probability: of it; calibrated if the run was tested, see :meth:`Run.test`. NaN of several labels and numbers.
        probabilities: of every class, in the order of ``class_names``; none of a number.
        value: the number, if that is what the run predicts.
        path: of an image of a folder or manifest, relative to it.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    value: float | None = None
    path: str | None = None

    def __repr__(self) -> str:
        """Return the fields that say something."""
        given = {name: value for name, value in self._asdict().items() if value not in (None, {})}
        return f"Prediction({', '.join(f'{name}={value!r}' for name, value in given.items())})"


class Run:
    """A run directory: ``Run("runs/fit/0")``, or what :func:`~transferkit.training.fitting.fit` returns.

    Args:
        path: the directory.
        data: what it was trained on; by default what its ``config.yaml`` says.

    Raises:
        UserError: the directory holds no checkpoint.
    """

    def __init__(self, path: str | Path, data: "ImageDataModule | None" = None) -> None:
        self.path, self.given = Path(path), data
        checkpoint = checkpoint_of(self.path)
        if checkpoint is None:
            raise UserError(f"{self.path} holds no checkpoint; give the directory of a run, such as runs/fit/0")
        self.checkpoint = checkpoint

    def __repr__(self) -> str:
        """Return the directory and what was measured."""
        kept = {name: value for name, value in self.metrics.items() if name.endswith(("/acc", "/map", "/r2"))}
        return f"Run({str(self.path)!r}{''.join(f', {name} {value:.4f}' for name, value in kept.items())})"

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of ``metrics.json``, by their logged names."""
        return read_metrics(self.path)

    @cached_property
    def extractor(self) -> Extractor:
        """The backbone with the trained head, of ``best.ckpt``; of ``last.ckpt`` if nothing was validated."""
        return Extractor.from_pretrained(self.checkpoint)

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the head's outputs."""
        return self.extractor.class_names

    @overload
    def predict(self, images: list[Any], batch_size: int = ..., progress: bool = ...) -> list[Prediction]: ...
    @overload
    def predict(self, images: Any, batch_size: int = ..., progress: bool = ...) -> Any: ...

    def predict(self, images: Any, batch_size: int = 32, progress: bool = False) -> Prediction | list[Prediction]:
        """Classify an image, or several; with calibrated probabilities after :meth:`test` on data with a val split.

        Args:
            images: one image, or several, in any form that ``Extractor.embed`` takes; or a folder or manifest, whose
                predictions are in the order of their ``path``.
            batch_size: images per forward pass.
            progress: show a progress bar on a terminal or in a notebook.

        Returns:
            One prediction for one image; a list for several.

        Raises:
            UserError: an image cannot be read.
        """
        paths = None
        if isinstance(images, str | Path) and (Path(images).is_dir() or Path(images).suffix in MANIFEST_SUFFIXES):
            table = embed(images, self.extractor, batch_size, progress=progress)
            embedding, paths, single = table.embedding, table.paths, False
        else:
            single = is_single(images)
            embedding = self.extractor.embed([images] if single else images, batch_size, progress)
        logits, calibration, found = self.extractor.classify(embedding), self.extractor.calibration, []
        task = task_of(self.extractor.record.get("target", "class"), record=self.extractor.record)
        outputs = (calibration.probability(logits) if calibration else task.activate(logits)).cpu()
        if task.kind != "class":
            texts = task.columns([""] * len(outputs), [None] * len(outputs), outputs, self.class_names, 1)["prediction"]
        for number, row in enumerate(outputs):
            values = dict(zip(self.class_names, row.tolist(), strict=True))
            if task.kind == "number":
                found.append(Prediction(f"{values['target']:g}", math.nan, {}, values["target"]))
            elif task.kind == "labels":
                found.append(Prediction(texts[number].as_py(), math.nan, values))
            else:
                label = self.class_names[int(row.argmax())]
                found.append(Prediction(label, values[label], values))
        if paths is not None:
            found = [each._replace(path=path) for each, path in zip(found, paths, strict=True)]
        return found[0] if single else found

    def test(self, progress: bool = False) -> dict[str, float]:
        """Measure the best checkpoint on the test split, or on val if there is none, and write the files of ``test``.

        The run's report, if it has one, is written again.

        Returns:
            The metrics under ``test/``.

        Raises:
            UserError: the data is no longer there.
        """
        from transferkit.probe.audit_files import audit_run
        from transferkit.reports.report import FILE, report_of
        from transferkit.reports.result_files import is_fine_tuned
        from transferkit.training.module import TransferModule
        from transferkit.training.run_leaks import leaks_of_run
        from transferkit.training.trainer import make_trainer, quietly

        module = TransferModule(backbone=str(self.checkpoint))
        with quietly(), showing_progress(progress):
            trainer = make_trainer(self.path, checkpoints=False, enable_progress_bar=progress)
            trainer.test(module, datamodule=self.data, verbose=False)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if module.epoch is not None:
            values["test/epoch"] = module.epoch
        write_metrics(self.path, self.metrics | values)
        audit_run(self.path, is_fine_tuned(ResultFolder(self.path).yaml("config.yaml")))
        leaks_of_run(module, module.data, self.path)
        if (self.path / FILE).is_file():  # of the fit, which was asked for it
            report_of(self.path)
        self.__dict__.pop("extractor", None)  # opened anew, with its calibration
        return values

    @property
    def data(self) -> "ImageDataModule":
        """The data of the fit, with its splits.

        Raises:
            UserError: the run does not say where it is.
        """
        from transferkit.data.datamodule import ImageDataModule

        if self.given is not None:
            return self.given
        options = ResultFolder(self.path).yaml("config.yaml").get("data") or {}
        if not options.get("root"):
            raise UserError(f"{self.path} does not say where its images are; give Run(path, data=ImageDataModule(...))")
        data = ImageDataModule(**options)
        data.configure(splits=str(self.path / "splits.parquet"))
        return data

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report and return its file.

        Args:
            out: the HTML file; by default ``report.html`` in the run.

        Raises:
            UserError: it cannot be written.
        """
        from transferkit.reports.report import report_of

        return report_of(self.path, out)

    def embeddings(self) -> Embeddings:
        """Return the embeddings of the tested images.

        Raises:
            UserError: nothing was tested yet.
        """
        if not (self.path / "embeddings.parquet").is_file():
            raise UserError(f"{self.path} was not tested yet; call test() first")
        return Embeddings.load(self.path / "embeddings.parquet")

    def plot_history(self) -> "Figure":
        """Draw loss and accuracy of each epoch.

        Raises:
            UserError: the run's metrics.csv is broken.
        """
        from matplotlib.figure import Figure

        rows = read_rows(self.path / "metrics.csv")
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_curves(left, rows, ("train/loss", "val/loss"))
        draw_curves(right, rows, ("val/acc", "val/map", "val/r2", "val/f1_macro"))
        return figure

    def plot_confusion(self) -> "Figure":
        """Draw the confusion matrix of the tested images.

        Raises:
            UserError: nothing was tested yet, or images do not have one class each.
        """
        from transferkit.reports import figures

        if (kind := self.extractor.record.get("target", "class")) != "class":
            what = "a number" if kind == "number" else "several labels"
            raise UserError(f"{self.path} predicts {what} per image, which has no confusion matrix; call report()")
        table = ResultFolder(self.path).predictions()
        if table is None:
            raise UserError(f"{self.path} was not tested yet; call test() first")
        names = table.class_names
        index = {name: number for number, name in enumerate(names)}
        counts = torch.zeros(len(names), len(names), dtype=torch.long)
        for label, pred in zip(table.labels, table.preds, strict=True):
            counts[index[label], index[pred]] += 1
        return figures.confusion(counts, names, f"test: {len(table)} images")

    def plot_embeddings(self) -> "Figure":
        """Draw the embeddings of the tested images on their two axes of largest variance, in the color of their class.

        Raises:
            UserError: nothing was tested yet.
        """
        from transferkit.reports import figures

        table = self.embeddings()
        points, share = principal_axes(table.embedding)
        names, (codes,) = class_codes(table.labels)
        axes = [f"axis {number} ({float(part):.0%})" for number, part in enumerate(share, start=1)]
        return figures.scatter(
            points, codes, [str(name) for name in names], f"{len(table)} embeddings", (axes[0], axes[1])
        )


def draw_curves(axes: "Axes", rows: Sequence[Mapping[str, str]], names: Iterable[str]) -> None:
    """Draw columns of ``metrics.csv`` over the epochs."""
    for name in names:
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set_xlabel("epoch")
    if axes.lines:
        axes.legend()
