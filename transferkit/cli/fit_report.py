"""What fit prints before and after the training."""

from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.console import command, note
from transferkit.training.regimes import count_parameters
from transferkit.training.run_leaks import copies_of_train

if TYPE_CHECKING:
    from transferkit.data.datamodule import ImageDataModule
    from transferkit.training.module import TransferModule


def starting(module: "TransferModule", data: "ImageDataModule", run: Path | None) -> None:
    """Print what is trained on what; nothing is kept without a run."""
    total, learning = count_parameters(module)
    counts = ", ".join(f"{len(table)} {name}" for name, table in data.tables.items())
    note(f"{module.backbone.name} ({module.backbone.pooling}, {module.backbone.embed_dim}-d), regime {module.regime}: "
         f"{total:,} parameters, {learning:,} learn")  # fmt: skip
    note(f"{data.root}: {what_is_learned(data)}, {counts} images; {f'run {run}' if run else 'nothing is kept'}")


def what_is_learned(data: "ImageDataModule") -> str:
    """Return the number of classes or labels, or that it is a number."""
    words = {"class": f"{len(data.class_names)} classes", "labels": f"{len(data.class_names)} labels"}
    return words.get(data.kind, "a number per image")


def copies(data: "ImageDataModule") -> None:
    """Print how many val images are nearly the same as training images, if the fit can tell."""
    if found := copies_of_train(data):
        of = f"{found:,} of {len(data.tables['val']):,} images of val"
        note(f"{of} are nearly the same as images of train, so val looks too good; test, and see report.html")


def interrupted(verb: str, run: Path) -> None:
    """Print how to resume."""
    last = run / "checkpoints" / "last.ckpt"
    if verb == "fit" and last.is_file():
        note(f"interrupted; resume with: {command('fit', '--ckpt_path', last)}")
    elif verb == "fit":
        note("interrupted before the first checkpoint; start the same command again, the embeddings are cached")
