"""``benchmark``: probes over extractors x datasets, stopped and continued at will."""

from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console
from transferkit.cli.dialect import translate
from transferkit.cli.open_extractor import Accelerator, open_extractor
from transferkit.cli.parsing import resumable
from transferkit.errors import UserError
from transferkit.probe.benchmark.cells import Approach, Dataset
from transferkit.runtime.files import check_folder

if TYPE_CHECKING:
    from transferkit.extractor import Extractor


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
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
    """Probe several extractors on several datasets: a table, a CSV file and a picture.

    Each cell is kept as soon as it is measured; run again, only what is missing, failed or no longer valid is
    measured. The protocol is that of ``transferkit probe``. The exit status is 2 if none could be.

    Args:
        extractors: name in the table -> extractor, or {extractor, weights, pooling, preprocessing}, the last as
            {image_size: 160}; all are compared with the first.
        datasets: name in the table -> folder, manifest, ``digits``, or a dataset of torchvision's by name
            (cifar10, cifar100, country211, dtd, eurosat, fashionmnist, fgvcaircraft, flowers102, food101, mnist,
            oxfordiiitpet, stl10, svhn), which is downloaded; or {images, image_root}, where a manifest's paths are
            relative to another folder than its own.
        out: directory for cells, benchmark.md, benchmark.csv and benchmark.png.
        resume: keep the cells that are there and still valid; false measures all of them again.
        fast: sweep C coarse to fine.
        seed: of the parts that are drawn.
        val_fraction: share of train to select on, where no val is given beside a test.
        test_fraction: share of all to report on, where no splits are given.
        on_error: unreadable images: ``fail`` fails the cell, ``skip`` leaves them out.
        accelerator: auto takes a GPU if there is one.
        json: print the cells as one JSON object.
    """
    from transferkit.probe.benchmark import benchmark_table, grid

    if not extractors or not datasets:
        missing = "extractors" if not extractors else "datasets"
        raise UserError(f"no {missing} to benchmark; name them in a config, as --config benchmark.yaml does")
    approaches = {name: read_approach(name, entry) for name, entry in extractors.items()}
    places = {name: read_dataset(name, entry) for name, entry in datasets.items()}
    options = {"fast": fast, "seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    place = Path(out)
    check_folder(place)
    opens = partial(opened, accelerator=accelerator)
    cells = grid.run(place, approaches, places, opens, resume=resume, on_error=on_error, options=options)
    if json:
        console.as_json({"cells": [asdict(cell) for cell in cells]})
    else:
        print_table(benchmark_table.rows_of(cells, benchmark_table.comparisons(place, cells)))
    failed = [cell for cell in cells if cell.error]
    if failed:
        console.note(
            f"{len(failed)} of {len(cells)} cells could not be measured; "
            f"their reasons are in {out}/{benchmark_table.MARKDOWN}"
        )
    files = (benchmark_table.MARKDOWN, benchmark_table.CSV, benchmark_table.PICTURE)
    console.written(*(place / name for name in files if (place / name).is_file()))
    if failed and len(failed) == len(cells):
        raise UserError(f"{failed[0].error} ({failed[0].approach} on {failed[0].dataset}; no cell could be measured)")
    return 0


def opened(approach: Approach, accelerator: Accelerator = "auto") -> "Extractor":
    """As :func:`open_extractor`; a message names the keys of the config.

    Raises:
        UserError: likewise.
    """
    keys = [field.name for field in fields(Approach)]
    try:
        return open_extractor(
            approach.extractor, approach.weights, approach.pooling, accelerator, approach.preprocessing
        )
    except UserError as error:
        raise UserError(
            translate(
                str(error), {"source": "extractor:", "accelerator": "--accelerator"} | {key: f"{key}:" for key in keys}
            )
        ) from error


def read_approach(name: str, entry: str | dict[str, Any]) -> Approach:
    """An entry of the config's ``extractors``.

    Raises:
        UserError: options that an extractor does not have, or no ``extractor``.
    """
    entry = {"extractor": entry} if isinstance(entry, str) else entry
    check_entry("extractors", name, entry, Approach)
    return Approach(**entry)


def read_dataset(name: str, entry: str | dict[str, Any]) -> Dataset:
    """An entry of the config's ``datasets``.

    Raises:
        UserError: options that a dataset does not have, or no ``images``.
    """
    entry = {"images": entry} if isinstance(entry, str) else entry
    check_entry("datasets", name, entry, Dataset)
    return Dataset(**entry)


def check_entry(section: str, name: str, entry: dict[str, Any], kind: type[Approach | Dataset]) -> None:
    """Refuse an entry that does not have the fields of a dataclass, of their types.

    Raises:
        UserError: naming section, entry and field.
    """
    takes = {field.name: field for field in fields(kind)}
    unknown = sorted(set(entry) - set(takes))
    lacks = [field.name for field in takes.values() if field.default is MISSING and field.name not in entry]
    if unknown or lacks:
        fault = f"has no option {unknown[0]!r}" if unknown else f"has no {lacks[0]!r}"
        raise UserError(f"{section}: {name!r} {fault}; it takes {', '.join(takes)}")
    for option, value in entry.items():
        is_mapping, may_lack = option == "preprocessing", takes[option].default is None
        if not (isinstance(value, dict if is_mapping else str) or (value is None and may_lack)):
            wanted = "fields and values, as {image_size: 160}" if is_mapping else "text"
            raise UserError(f"{section}: {option} of {name!r} is {value!r}; give {wanted}")


def print_table(rows: list[dict[str, str]]) -> None:
    """What fits on a screen; the files hold the rest."""
    shown = ("dataset", "approach", "width", "linear", "kNN", "1-shot", "16-shot")
    kept = [{name: text for name, text in row.items() if name in shown} for row in rows]
    if kept:
        console.table(list(kept[0]), [list(row.values()) for row in kept])
