"""``benchmark``: probes over extractors x datasets, resumable."""

from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console
from transferkit.cli.dialect import translate
from transferkit.cli.open_extractor import Accelerator, engine_and_precision, open_extractor
from transferkit.cli.parsing import resumable
from transferkit.errors import UserError
from transferkit.probe.benchmark.cells import Approach, Dataset
from transferkit.runtime.files import check_folder

if TYPE_CHECKING:
    from transferkit.extractor import Extractor


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
            precision}, preprocessing as {image_size: 160}, the last two as for embed (int8 takes each dataset's own
            images); all are compared with the first.
        datasets: name in the table -> folder, manifest, ``digits``, or the name of a torchvision dataset
            (cifar10, cifar100, country211, dtd, eurosat, fashionmnist, fgvcaircraft, flowers102, food101, mnist,
            oxfordiiitpet, stl10, svhn), which is downloaded; or {images, image_root}, if a manifest's paths are
            relative to another folder than its own.
        out: directory for cells, benchmark.md, benchmark.csv, benchmark.png and report.html.
        resume: keep the cells that are still valid; false measures all of them again.
        fast: sweep C coarse to fine.
        seed: seed of the drawn splits.
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
    options = {"coarse_to_fine": fast, "seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    folder = Path(out)
    check_folder(folder)
    opener = partial(open_approach, accelerator=accelerator)
    cells = grid.run(folder, approaches, images, opener, resume=resume, on_error=on_error, options=options)
    if json:
        console.as_json({"cells": [asdict(cell) for cell in cells]})
    else:
        print_table(benchmark_table.rows_of(cells, benchmark_table.comparisons(folder, cells)))
    failed = [cell for cell in cells if cell.error]
    if failed:
        console.note(
            f"{len(failed)} of {len(cells)} cells could not be measured; "
            f"the reasons are in {out}/{benchmark_table.MARKDOWN}"
        )
    files = (benchmark_table.MARKDOWN, benchmark_table.CSV, benchmark_table.FIGURE)
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
            approach.extractor, approach.weights, approach.pooling, accelerator, approach.preprocessing
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
        is_mapping, is_optional = option == "preprocessing", takes[option].default is None
        if not (isinstance(value, dict if is_mapping else str) or (value is None and is_optional)):
            wanted = "fields and values, as {image_size: 160}" if is_mapping else "a string"
            raise UserError(f"{section}: {option} of {name!r} is {value!r}; give {wanted}")


def print_table(rows: list[dict[str, str]]) -> None:
    """Print the columns that fit on a screen; the files have all."""
    shown = ("dataset", "approach", "width", "linear", "kNN", "1-shot", "16-shot")
    kept = [{name: text for name, text in row.items() if name in shown} for row in rows]
    if kept:
        console.table(list(kept[0]), [list(row.values()) for row in kept])
