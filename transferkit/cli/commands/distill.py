"""``distill``: a small network learns to embed images as a large one does."""

from dataclasses import asdict, dataclass
from pathlib import Path

from transferkit.cli import console
from transferkit.cli.arguments import all_options
from transferkit.cli.dialect import Flat
from transferkit.cli.parsing import call
from transferkit.training.distill_options import DistillOptions

LAST = ("--ckpt_path", "last")


@dataclass(frozen=True)
class Settings(DistillOptions, Flat):
    """Networks and training as options of the command."""


Settings.__doc__ = DistillOptions.__doc__  # the texts of its fields


def main(arguments: list[str]) -> int:
    """Run the command; a resumed one has the options of its run. Return the exit status."""
    from transferkit.training.run_directory import find_checkpoint

    given = arguments
    if which := all_options(arguments, "--ckpt_path"):
        name = [*all_options(arguments, "--name"), "distill"][0]
        run, _ = find_checkpoint(Path(), name, which[-1])
        given = arguments if run is None else [*arguments, "--config", str(run / "config.yaml")]
    try:
        return call(distill, given)
    except KeyboardInterrupt:
        again = console.command(*arguments, *(() if which else LAST))
        console.note(f"resume with: {again}; before the first epoch has ended, start the same command again")
        raise


def distill(
    images: str,
    options: Settings = Settings(),
    out: str = "student",
    overwrite: bool = False,
    name: str = "distill",
    image_root: str | None = None,
    ckpt_path: str | None = None,
    json: bool = False,
) -> int:
    """Train a small network, the student, to embed images as a large one does, its teacher. No labels are read.

    The student learns the teacher's embedding and the relations between images, and its patches where both have a grid.
    Teacher and student see the same part of an image, each in its own size and colors. The views are fixed: the
    teacher embeds each once (cached), so its cost is one pass per view, and the rest is training the student.

    Args:
        images: folder, manifest, ``digits`` or name of a torchvision dataset; of given splits, test is left out.
        options: networks and training.
        out: the directory for the student, which is an extractor like any other.
        overwrite: replace an earlier export.
        name: of the run: runs/NAME/NUMBER has checkpoints, metrics.csv and config.yaml.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        ckpt_path: last, or a checkpoint of a run, to resume with the options of that run.
        json: print one JSON object.
    """
    from transferkit.extractor import pretrained
    from transferkit.training.distilling import distill as run_distillation

    pretrained.check_export_place(Path(out), overwrite)  # before hours of training
    run = run_distillation(
        images, name=name, image_root=image_root, ckpt_path=ckpt_path, progress=True, **asdict(options)
    )
    run.extractor.save_pretrained(out, overwrite)
    if json:
        console.as_json({"run": str(run.path), "out": out, "metrics": run.metrics})
    else:
        console.table(("metric", "value"), sorted(run.metrics.items()))
        console.note(f"{run.checkpoint.name}: epoch {run.extractor.record['epoch']}, of the highest val/cosine")
    console.written(run.path, Path(out))
    console.next_command("probe", images, "--extractor", out)
    return 0
