"""``distill``: a small network learns to embed images as a large one does, without labels."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from transferkit.data.memory_table import table_of_images
from transferkit.data.splits import load_splits, save_splits
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import load
from transferkit.reports.report import report_of
from transferkit.runtime.processes import find_device
from transferkit.runtime.verbosity import showing_progress
from transferkit.training.distill_data import DistillDataModule, images_to_relate, readable, without_labels
from transferkit.training.distill_module import DistillModule
from transferkit.training.distill_options import DistillOptions
from transferkit.training.epoch_lines import progress_callbacks
from transferkit.training.resume import progress_of
from transferkit.training.run import Run
from transferkit.training.run_directory import find_checkpoint, new_run, remove_unsaved, write_config, write_metrics
from transferkit.training.shared_views import Cells, seeing_the_same, shared_cells
from transferkit.training.trainer import chosen_metrics, make_trainer, quietly, seed_everything
from transferkit.training.trainer_options import refusal

log = logging.getLogger(__name__)
CONFIG, SPLITS = "config.yaml", "splits.parquet"
# What may differ in a resumed distillation.
MOVABLE = ("images", "image_root", "epochs", "num_workers", "accelerator", "precision", "on_error")


def distill(
    images: Any,
    *,
    name: str = "distill",
    out: str | Path = ".",
    image_root: str | None = None,
    ckpt_path: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Run:
    """Train a student to embed images as a teacher does, and return the run; no labels are read.

    ``distill("photos", teacher="facebook/dinov2-small").extractor.save_pretrained("small")``. It runs in this process
    alone, on one device.

    Args:
        images: folder, manifest or ``digits``; or a list, iterator or dataset as for ``Extractor.embed``. Of given
            splits, test is left out.
        name: of the run.
        out: where ``runs/NAME/NUMBER`` is made.
        image_root: the folder of a manifest's paths; by default its own.
        ckpt_path: ``last``, or a checkpoint of a run, to resume; options and images must be those of the run.
        progress: show the epochs, and a bar on a terminal or in a notebook.
        options: of :class:`~transferkit.training.distill_options.DistillOptions`: ``teacher``, ``student``,
            ``weights``, ``epochs``, ``image_size`` and others.

    Returns:
        The run; its ``extractor`` is the student nearest to its teacher on the images that were held out.

    Raises:
        UserError: an option is unknown or out of range, images cannot be read, or the networks cannot share views.
    """
    known = [field.name for field in fields(DistillOptions)]
    if unknown := sorted(options.keys() - set(known)):
        raise UserError(f"distill has no argument {unknown[0]!r}; it takes {', '.join(known)}")
    given = DistillOptions(**options)
    run, checkpoint = (None, None) if ckpt_path is None else find_checkpoint(Path(out), name, ckpt_path)
    if checkpoint is not None and (run is None or not is_distillation(run)):
        raise UserError(f"{checkpoint} is not in a run of distill to resume; start a new one")
    table = table_of_images(images, image_root=image_root)
    config = {"images": table.source, "image_root": image_root, **asdict(given)}
    if run and checkpoint:
        check_same(read_config(run), config, run)
        if (done := progress_of(load(checkpoint), checkpoint).epochs) > given.epochs:
            raise UserError(f"`epochs` is {given.epochs}, the checkpoint has completed {done}; give more")
    with quietly(), showing_progress(progress):
        data, module = prepare(table, given, run and run / SPLITS)
        run = run or new_run(Path(out), name)
        with kept_with_checkpoint(run):
            write_config(run, {**config, "name": run.parent.name})
            save_splits(data.table, run / SPLITS)
            train(run, data, module, given, checkpoint, progress)
        write_metrics(run, chosen_metrics(run)[1])
        report_of(run)
    return Run(run)


@contextmanager
def kept_with_checkpoint(run: Path) -> Iterator[None]:
    """Remove a run that ends in an exception before its first checkpoint.

    Raises:
        KeyboardInterrupt: the user interrupts; Lightning turns that into the end of the program.
    """
    try:
        yield
    except BaseException as error:
        remove_unsaved(run)
        if isinstance(error, SystemExit):
            raise KeyboardInterrupt from error
        raise


def prepare(table: Any, given: DistillOptions, splits: Path | None) -> tuple[DistillDataModule, DistillModule]:
    """Open both networks and let the teacher embed the images; the splits are those of an interrupted run, or drawn.

    Raises:
        UserError: see :func:`distill`.
    """
    seed_everything(given.seed)
    size = {name: {} if side is None else {"image_size": side}
            for name, side in (("student", given.image_size), ("teacher", given.teacher_size))}  # fmt: skip
    student = Extractor.from_pretrained(given.student, given.weights, preprocessing=size["student"])
    teacher = Extractor.from_pretrained(given.teacher, preprocessing=size["teacher"])
    origin: dict[str, Any] = {"teacher": given.teacher, "weights": f"{given.student} ({given.weights})"}
    cells: Cells = shared_cells(teacher, student) if given.patches else (0, 0)
    teacher = seeing_the_same(teacher, student.preprocessing).to(find_device(given.accelerator))
    bare = without_labels(readable(table, given.on_error), given.val_fraction, given.seed)
    data = DistillDataModule(
        load_splits(bare, splits) if splits else bare,
        student.preprocessing, given.views, given.batch_size, given.num_workers, given.seed,
    )  # fmt: skip
    data.ask(teacher, cells)
    known = data.targets["train"][0]
    origin["images"] = {name: len(part) for name, part in data.tables.items()}
    center = known.patches.mean((0, 1)) if cells[0] else None
    others = images_to_relate(known.embedding, given.relations, given.seed)
    return data, DistillModule(student, others, center, cells, given.lr, given.weight_decay, given.seed, origin)


def train(
    run: Path,
    data: DistillDataModule,
    module: DistillModule,
    given: DistillOptions,
    checkpoint: Path | None,
    progress: bool,
) -> None:
    """Train within a run.

    Raises:
        UserError: the training cannot be done with these options.
    """
    bar, shown = progress_callbacks(progress, []) if progress else (False, [])
    trainer = None
    try:
        trainer = make_trainer(
            run, callbacks=shown, max_epochs=given.epochs, accelerator=given.accelerator, devices=1,
            precision=given.precision, enable_progress_bar=bar, default_root_dir=str(run),
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except Exception as error:
        refused = None if isinstance(error, UserError) else refusal(error, before_training=trainer is None)
        if refused is None:
            raise
        raise refused from error


def is_distillation(run: Path) -> bool:
    """Return whether a run directory was made by :func:`distill`."""
    return "teacher" in read_config(run)


def read_config(run: Path) -> dict[str, Any]:
    """Return the content of the run's ``config.yaml``; empty where it is missing or holds something else."""
    try:
        content = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], run: Path) -> None:
    """Raise if an option differs from that of the run to resume.

    Raises:
        UserError: naming the option.
    """
    for name, value in wanted.items():
        before = saved.get(name, value)
        if before != value and name not in MOVABLE:
            raise UserError(f"`{name}={value}` differs from the {before} that {run} was started with; leave it out")
