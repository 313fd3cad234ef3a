"""Every verb that takes images, one entry each; add an entry for a new verb."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.image_corpus import encode, photo
from tests.running import Done, transferkit
from tests.tiny import RESNET, options

SMALL = [*options("model", RESNET), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]


@dataclass(frozen=True)
class Entrance:
    """A verb that takes images.

    Attributes:
        arguments: arguments of the verb, for a folder of class folders and a checkpoint.
        values: its results, from its output and the files in the working directory, as plain types; they must not
            depend on the file format of the images.
        names_all: whether it names every broken image, or stops at the first.
    """

    verb: str
    arguments: Callable[[Path, Path], list[str]]
    values: Callable[[Done], Any]
    names_all: bool = True


def parquet(pattern: str) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file."""
    (file,) = Path().glob(pattern)
    return list(pq.read_table(file).to_pylist())


def metrics(_: Done) -> dict[str, float]:
    """Return the metrics of a fit, without times."""
    (file,) = Path().glob("runs/fit/*/metrics.json")
    return {name: value for name, value in json.loads(file.read_text()).items() if "time" not in name}


def scores(_: Done) -> dict[str, Any]:
    """Return the results of a probe, without the fingerprint of the files."""
    report = json.loads(Path("probe/probe.json").read_text())
    return {part: report[part] for part in ("linear", "knn", "nearest_class_mean", "few_shot", "splits")}


def boxes(root: Path) -> str:
    """Write a CSV file with one box per image that exceeds it on two sides: the whole image is left."""
    rows = [f'"{path.relative_to(root).as_posix()}",0,0,100000,100000' for path in sorted(root.glob("*/*"))]
    Path("boxes.csv").write_text("\n".join(["path,x1,y1,x2,y2", *rows]))
    return "boxes.csv"


def index(checkpoint: Path) -> str:
    """Make an index of three images to search in."""
    Path("indexed").mkdir()
    for number in range(3):
        Path(f"indexed/{number}.png").write_bytes(encode(photo(40, 40, number), "PNG"))
    done = transferkit("index", "indexed", "--extractor", str(checkpoint), "--out", "index")
    assert done.status == 0, done.err
    return "index"


def errors(_: Done) -> list[str]:
    """Return the errors of a scan except copies: some cases of the corpus have the same pixels."""
    lines = [line for line in Path("report.csv").read_text().splitlines() if ",error," in line]
    return [line for line in lines if ",leak," not in line and ",label-conflict," not in line]


ENTRANCES = (
    Entrance("fit", lambda root, _: ["--data.root", str(root), *SMALL, "--trainer.max_epochs", "1"], metrics),
    Entrance(
        "predict",
        lambda root, checkpoint: [
            *("--data.root", str(root), "--ckpt_path", str(checkpoint)),
            *("--data.num_workers", "0", "--trainer.accelerator", "cpu"),
        ],
        lambda _: parquet("**/predictions.parquet"),
    ),
    Entrance(
        "embed",
        lambda root, checkpoint: [str(root), "--extractor", str(checkpoint), "--out", "e.parquet"],
        lambda _: parquet("e.parquet"),
    ),
    Entrance(
        "similarity",
        lambda root, checkpoint: [*map(str, sorted(root.glob("*/*"))), "--extractor", str(checkpoint), "--json"],
        lambda done: json.loads(done.out)["cosine"],
        names_all=False,
    ),
    Entrance(
        "search",
        lambda root, checkpoint: [index(checkpoint), *map(str, sorted(root.glob("*/*"))), "--json"],
        lambda done: [(hit["path"], hit["cosine"]) for hit in json.loads(done.out)["results"]],
        names_all=False,
    ),
    Entrance(
        "regions",
        lambda root, checkpoint: [str(root), "--boxes", boxes(root), "--extractor", str(checkpoint)],
        lambda _: parquet("regions.parquet"),
        names_all=False,
    ),
    Entrance(
        "probe",
        lambda root, checkpoint: [str(root), "--extractor", str(checkpoint), "--fast"],
        scores,
    ),
    Entrance("scan", lambda root, _: [str(root), "--out", "report.csv"], errors),
)
