"""What a user reads: results on stdout, everything else on stderr."""

import difflib
import inspect
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from transferkit.freezing import count_parameters

if TYPE_CHECKING:
    from transferkit.data.datamodule import ImageDataModule
    from transferkit.module import TransferModule


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


def starting(module: "TransferModule", data: "ImageDataModule", run: Path) -> None:
    """What is about to be trained on what."""
    total, learning = count_parameters(module)
    counts = ", ".join(f"{len(table)} {name}" for name, table in data.tables.items())
    note(f"{module.backbone.name} ({module.backbone.pooling}, {module.backbone.embed_dim}-d), regime {module.regime}: "
         f"{total:,} parameters, {learning:,} learn")  # fmt: skip
    note(f"{data.root}: {len(data.class_names)} classes, {counts} images; run {run}")


def metrics(values: Mapping[str, float], source: str) -> None:
    """Metrics by their names, one a line."""
    note(source)
    for name, value in sorted(values.items()):
        print(f"{name} {value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{name} {value:.3e}")


def paths(run: Path) -> None:
    """The run's path and what lies in it."""
    print(f"run {run}")
    note("written: " + ", ".join(sorted(path.name for path in run.iterdir() if not path.name.startswith("."))))


def next_step(verb: str, checkpoint: Path) -> None:
    """The next command to try."""
    note(f"next: {command(verb, checkpoint)}")


def command(verb: str, checkpoint: Path) -> str:
    """A command on a checkpoint, to be pasted into a shell."""
    return shlex.join(["transferkit", verb, "--ckpt_path", str(checkpoint)])


def predictions(path: Path, most: int = 10) -> None:
    """The first predictions, one a line."""
    table = pq.read_table(path).slice(0, most).to_pylist()
    for row in table:
        print(f"{row['path']} {row['prediction']} {row['probability']:.3f}")
    note(f"all of them: {path}")


def interrupted(verb: str, run: Path) -> None:
    """How to go on."""
    last = run / "checkpoints" / "last.ckpt"
    if verb == "fit" and last.is_file():
        note(f"interrupted; resume with: {command('fit', last)}")
    elif verb == "fit":
        note("interrupted before the first checkpoint; start the same command again, what was embedded is kept")


def explain(message: str) -> str:
    """A parser's message as one line: the nearest name for an unknown option, the types that a value may have."""
    line = " ".join(message.split())
    said = r"(?:nrecognized arguments?:|does not accept option|No action for key)"
    unknown = re.search(said + r" ['\"]?(\S+?)['\"]?(?=\s|$)", line)
    if unknown:
        return f"unknown option {unknown[1]}; {nearest(unknown[1].removeprefix('--').split('=')[0])}"
    wrong = re.search(r"Parser key \"([\w.]+)\":(.*?)(?:Given value:|Got value:) (.*)", line)
    if wrong:
        option, expected, value = wrong.groups()
        kinds = re.findall(r"Literal\[(.*?)\]", expected) or re.findall(r"Expected an? <class '(\w+)'>", expected)
        wanted = " or ".join(dict.fromkeys(kinds)).replace("NoneType", "null")
        return f"--{option} is {value[:80]!r}; give {wanted or 'a value of another type'}"
    return line[:400]


def nearest(name: str) -> str:
    """Advice for a name that is no option: the nearest one, by the whole name or its last part."""
    known = known_options()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    last = {option.split(".")[-1]: option for option in known}
    near = near or [last[end] for end in difflib.get_close_matches(name.split(".")[-1], last, n=1, cutoff=0.6)]
    return f"did you mean --{near[0]}?" if near else "transferkit fit --help lists them"


def known_options() -> list[str]:
    """Names of the options of fit, with their sections."""
    from lightning.pytorch import Trainer

    from transferkit.data.datamodule import ImageDataModule
    from transferkit.module import TransferModule

    sections = {"model": TransferModule, "data": ImageDataModule, "trainer": Trainer}
    names = [f"{key}.{name}" for key, kind in sections.items() for name in inspect.signature(kind).parameters]
    return [*names, "seed_everything", "name", "config", "ckpt_path", *sections]
