"""``benchmark``: probes over extractors x datasets, resumable."""

from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console
from transferkit.cli.dialect import translate
from transferkit.cli.open_extractor import Accelerator, engine_and_precision, open_extractor
from transferkit.cli.parsing import check_seed, resumable
from transferkit.errors import UserError
from transferkit.probe.benchmark.cells import Approach, Dataset
from transferkit.runtime.files import check_folder

if TYPE_CHECKING:
    from transferkit.extractor import Extractor


SHOTS = ("1-shot", "16-shot")
SHOWN = ("dataset", "approach", "width", "linear", "kNN", "mAP", "F1 macro", "F1 micro", "R²", "MAE", "Spearman")
KINDS: dict[str, tuple[str, type]] = {  # options of an entry that are not strings
    "preprocessing": ("fields and values, as {image_size: 160}", dict),
    "seed": ("a number from 0 up", int),
    "multilabel": ("true or false", bool),
}


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return resumable(benchmark, arguments)


def benchmark(
    extractors: dict[str, str | dict[str, Any]] | None = None,
    datasets: dict[str, str | dict[str, Any]] | None = None,
    out: str = "runs/benchmark",
    resume: bool = True,
    fast: bool = False,
    seed: int = 0,
    seeds: str | list[int] | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    on_error: Literal["fail", "skip"] = "fail",
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """Probe several extractors on several datasets: a table, a CSV file and a figure.

    Each cell is saved as soon as it is measured; run again, only missing, failed and outdated cells are measured.
    The protocol is that of ``transferkit probe``. The exit status is 2 if no cell could be measured.

    Args:
        extractors: name in the table -> extractor, or {extractor, weights, pooling, preprocessing, engine,
            precision, seed}, preprocessing as {image_size: 160}, engine and precision as for embed (int8 takes each
            dataset's own images), seed of random weights; all are compared with the first.
        datasets: name in the table -> folder, manifest, ``digits``, or the name of a torchvision dataset
            (cifar10, cifar100, country211, dtd, eurosat, fashionmnist, fgvcaircraft, flowers102, food101, mnist,
            oxfordiiitpet, stl10, svhn), which is downloaded; or {images, image_root, multilabel}: where a manifest's
            paths are relative to another folder than its own, or its labels are several, such as cat|dog. Datasets of
            several labels are judged by mAP, those of a number (column target) by R².
        out: directory for cells, benchmark.md, benchmark.tex, benchmark.csv, benchmark.png and report.html.
        resume: keep the cells that are still valid; false measures all of them again.
        fast: sweep C coarse to fine.
        seed: seed of the drawn splits.
        seeds: several in place of seed, such as 0,1,2: the table also has mean and standard deviation over them.
        val_fraction: share of train to select on, if no val is given beside a test.
        test_fraction: share of all images to report on, if no splits are given.
        on_error: unreadable images: ``fail`` fails the cell, ``skip`` leaves them out.
        accelerator: auto is a GPU if there is one.
        json: print the cells as one JSON object.
    """
    from transferkit.probe.benchmark import benchmark_table, grid
    from transferkit.reports.report import report_of

    if not extractors or not datasets:
        missing = "extractors" if not extractors else "datasets"
        raise UserError(f"no {missing} to benchmark; name them in a config, as in --config benchmark.yaml")
    approaches = {name: read_approach(name, entry) for name, entry in extractors.items()}
    images = {name: read_dataset(name, entry) for name, entry in datasets.items()}
    for name, place in images.items():
        check_there(name, place)
    first, *further = read_seeds(seeds) if seeds is not None else [seed]
    options = {"coarse_to_fine": fast, "seed": first, "val_fraction": val_fraction, "test_fraction": test_fraction}
    folder = Path(out)
    check_folder(folder)
    opener = partial(open_approach, accelerator=accelerator)
    more: dict[str, Any] = {"resume": resume, "on_error": on_error, "options": options, "seeds": further}
    cells = grid.run(folder, approaches, images, opener, **more)
    if json:
        console.as_json({"cells": [asdict(cell) for cell in cells]})
    else:
        for rows in benchmark_table.tables_of(cells, benchmark_table.comparisons(folder, cells)).values():
            print_table(rows)
    for cell in cells:
        for line in cell.warnings:
            console.note(f"warning: {cell.approach} on {cell.dataset}: {line}")
    failed = [cell for cell in cells if cell.error]
    if failed:
        console.note(
            f"{len(failed)} of {len(cells)} cells could not be measured; "
            f"the reasons are in {out}/{benchmark_table.MARKDOWN}"
        )
    files = (benchmark_table.MARKDOWN, benchmark_table.CSV, benchmark_table.FIGURE, benchmark_table.LATEX)
    written = [folder / name for name in files if (folder / name).is_file()]
    console.written(*written, report_of(folder))
    if failed and len(failed) == len(cells):
        raise UserError(f"{failed[0].error} ({failed[0].approach} on {failed[0].dataset}; no cell could be measured)")
    return 0


def open_approach(approach: Approach, accelerator: Accelerator = "auto") -> "Extractor":
    """Open the extractor of an approach; messages name the keys of the config.

    Raises:
        UserError: no such accelerator, or the extractor cannot be opened.
    """
    keys = [field.name for field in fields(Approach)]
    try:
        opened = open_extractor(
            approach.extractor, approach.weights, approach.pooling, accelerator, approach.preprocessing, approach.seed
        )
        return opened.run_with(*engine_and_precision(approach.engine, approach.precision))
    except UserError as error:
        raise UserError(
            translate(
                str(error), {"source": "extractor:", "accelerator": "--accelerator"} | {key: f"{key}:" for key in keys}
            )
        ) from error


def read_approach(name: str, entry: str | dict[str, Any]) -> Approach:
    """Read an entry of the config's ``extractors``.

    Raises:
        UserError: an unknown or wrong option, or no ``extractor``.
    """
    entry = {"extractor": entry} if isinstance(entry, str) else entry
    check_entry("extractors", name, entry, Approach)
    approach = Approach(**entry)
    check_seed(f"extractors.{name}.seed", approach.seed)
    if approach.seed and approach.weights != "none":
        raise UserError(f"extractors: seed of {name!r} is that of random weights; give it with weights: none")
    try:
        engine_and_precision(approach.engine, approach.precision)
    except UserError as error:
        raise UserError(translate(str(error), {"engine": "engine:", "precision": "precision:"})) from error
    return approach


def read_dataset(name: str, entry: str | dict[str, Any]) -> Dataset:
    """Read an entry of the config's ``datasets``.

    Raises:
        UserError: an unknown or wrong option, or no ``images``.
    """
    entry = {"images": entry} if isinstance(entry, str) else entry
    check_entry("datasets", name, entry, Dataset)
    return Dataset(**entry)


def read_seeds(seeds: str | list[int]) -> list[int]:
    """Read several seeds, from a list or from a text with commas.

    Raises:
        UserError: they are not numbers, one is out of range, or one is there twice.
    """
    try:
        numbers = [int(each) for each in (seeds.strip("[] ").split(",") if isinstance(seeds, str) else seeds)]
    except ValueError as error:
        raise UserError(f"--seeds is {seeds!r}; give numbers with commas between them, such as 0,1,2") from error
    for number in numbers:
        check_seed("seeds", number)
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds is {seeds!r}; give each seed once, such as 0,1,2")
    return numbers


def check_there(name: str, dataset: Dataset) -> None:
    """Raise before anything is measured if the images of a dataset are not there.

    Raises:
        UserError: no such folder or file; the dataset is named.
    """
    from transferkit.data.image_table import DIGITS
    from transferkit.data.torchvision_datasets import plain_name

    known = dataset.images == DIGITS or plain_name(dataset.images) is not None
    if not known and not Path(dataset.images).expanduser().exists():
        raise UserError(f"datasets: no such folder or file for {name!r}: {dataset.images!r}; check the path")


def check_entry(section: str, name: str, entry: dict[str, Any], kind: type[Approach | Dataset]) -> None:
    """Raise if an entry does not have the fields of a dataclass with their types.

    Raises:
        UserError: such an entry; section, entry and field are named.
    """
    takes = {field.name: field for field in fields(kind)}
    unknown = sorted(set(entry) - set(takes))
    missing = [field.name for field in takes.values() if field.default is MISSING and field.name not in entry]
    if unknown or missing:
        fault = f"has the unknown option {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise UserError(f"{section}: {name!r} {fault}; it takes {', '.join(takes)}")
    for option, value in entry.items():
        wanted, types = KINDS.get(option, ("a string", str))
        if not (isinstance(value, types) or (value is None and takes[option].default is None)):
            raise UserError(f"{section}: {option} of {name!r} is {value!r}; give {wanted}")


def print_table(rows: list[dict[str, str]]) -> None:
    """Print the columns that fit on a screen; the files have all.

    Args:
        rows: of one kind of target, one or more.
    """
    over = [name for name in rows[0] if name.endswith(" over seeds")]
    shown = [name for name in rows[0] if name in (*SHOWN, *(over or SHOTS))]
    console.table(shown, [[row[name] for name in shown] for row in rows])
