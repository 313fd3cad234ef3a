"""The quickstart: what transfer learning gains on real digits, in minutes and without a network."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from transferkit.errors import UserError
from transferkit.runtime.cores import cores
from transferkit.runtime.files import atomic_path, discard
from transferkit.runtime.jobs import run_jobs
from transferkit.runtime.progress import progress_bar
from transferkit.training import demo_figure
from transferkit.training.demo_backbone import BACKBONES, PRETRAINING, Row, Step, Study, train_backbone
from transferkit.training.step_progress import StepProgress
from transferkit.training.symbols import SYMBOLS, write_symbols

TABLE, FIGURE = "table.csv", "quickstart.png"


def run(study: Study) -> list[Row]:
    """Train each backbone on drawn symbols, export it, and learn the handwritten digits in four ways.

    The backbones are trained side by side, in a process each, if there are two cores.

    Args:
        study: what to train; the results of an earlier quickstart in its directory are replaced.

    Raises:
        UserError: the directory cannot be written, or holds other files.
    """
    clear(study)
    drawings = study.drawings * len(SYMBOLS)
    with (
        atomic_path(study.symbols, folder=True) as folder,
        progress_bar("drawing symbols", drawings, "symbols") as advance,
    ):
        write_symbols(folder, study.drawings, study.seed, advance)
    with StepProgress({name: study.work(name) for name in BACKBONES}) as progress:

        def show(name: str, step: Step) -> None:
            if step.begun:
                progress.begin(name, step.begun)
            else:
                progress.advance(name, step.done)

        jobs = {name: partial(train_backbone, study, name) for name in BACKBONES}
        rows = [row for part in run_jobs(jobs, min(len(jobs), cores()), show).values() for row in part]
    with atomic_path(study.out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    demo_figure.draw(study, rows, best(rows, next(iter(BACKBONES)), transferred=True), study.out / FIGURE)
    return rows


def clear(study: Study) -> None:
    """Make the directory, and remove the results of an earlier quickstart in it.

    Raises:
        UserError: the directory cannot be written, or holds files that a quickstart does not write.
    """
    out = study.out
    ours = {path.name for path in written(study)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(path for path in out.iterdir() if not path.name.isdigit())  # runs of quickstart.yaml stay
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another `out`") from error
    for path in found:
        if path.name not in ours and not path.name.endswith(".tmp"):
            raise UserError(f"{out} holds {path.name!r}, which a quickstart does not write; give another `out`")
    for path in found:
        discard(path)


def written(study: Study) -> list[Path]:
    """Return the files and directories that a quickstart writes."""
    folders = [
        study.folder(backbone, approach)
        for backbone in BACKBONES
        for approach in (PRETRAINING, "extractor", *study.approaches(backbone))
    ]
    return [study.symbols, *folders, study.out / TABLE, study.out / FIGURE]


def best(rows: Sequence[Row], backbone: str, transferred: bool) -> Row:
    """Return the most accurate approach to the digits, with or without transfer."""
    approaches = [row for row in rows if row.backbone == backbone and row.approach != PRETRAINING]
    return max((r for r in approaches if r.approach.startswith("transferred") == transferred), key=lambda r: r.accuracy)


def margin(rows: Sequence[Row], backbone: str) -> float:
    """Return by how much the best transferred accuracy minus its deviation exceeds the best other one plus its own."""
    transferred, other = best(rows, backbone, True), best(rows, backbone, False)
    return transferred.accuracy - (transferred.std or 0) - (other.accuracy + (other.std or 0))
