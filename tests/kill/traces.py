"""The files that a command left in a folder, without times."""

import csv
import io
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file

TIMES = ("epoch_time", "images_per_second", "images/s", "seconds")
CHECKPOINT = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "callbacks", "transferkit")


def traces(folder: Path) -> dict[str, Any]:
    """Return path -> content of each file and directory, including hidden and temporary ones.

    Only the newest run of a fit is included, as ``0``: one that was killed before its first checkpoint starts again,
    under another number. Of TensorBoard's files only the folder is listed: a resumed fit continues in a new file. The
    cache of decoded images is left out: missing entries are decoded again.
    """
    found: dict[str, Any] = {}
    runs = {run.parent: max(run.parent.glob("*"), key=lambda run: int(run.name)) for run in folder.glob("runs/cut/*")}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if match := re.match(r"runs/cut/(\d+)", name):
            if match[1] != runs[folder / "runs/cut"].name:
                assert path.name != "last.ckpt", "it could have been resumed"
                continue
            name = name.replace(match[0], "runs/cut/0", 1)
        memory_alone = name == "cache" and {inner.name for inner in path.iterdir()} <= {"decoded"}
        if memory_alone or name.startswith("cache/decoded"):
            continue
        if "tfevents" in name:
            found[f"{Path(name).parent}/events"] = None
        else:
            found[name] = content(path) if path.is_file() else "a folder"
    return found


def content(path: Path) -> Any:
    """Return the content of a file in a form that can be compared."""
    if path.suffix == ".ckpt":
        saved = torch.load(path, weights_only=True)
        return plain({part: saved[part] for part in CHECKPOINT})
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return [timeless(row) for row in csv.DictReader(io.StringIO(path.read_text()))]
    if path.name == "benchmark.md":  # a row of the table begins and ends with a bar
        rows = [line.strip("|").split("|") for line in path.read_text().splitlines() if line.startswith("|")]
        speed = [cell.strip() for cell in rows[0]].index("images/s") if rows else 0
        return [[cell for column, cell in enumerate(row) if column != speed] for row in rows]
    if path.name == "benchmark.tex":
        rows = [line.split(" & ") for line in path.read_text().splitlines() if " & " in line]
        speed = rows[0].index("images/s") if rows else 0
        return [[cell for column, cell in enumerate(row) if column != speed] for row in rows]
    if path.suffix == ".html":  # names its run
        return re.sub(r"\bcut/\d+", "cut/0", path.read_text(encoding="utf-8"))
    return sha256(path.read_bytes()).hexdigest()


def timeless(value: Any) -> Any:
    """Return JSON content without times."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Return content with tensors as the hash of their bytes, without times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), sha256(value.detach().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in TIMES}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def check_whole(folder: Path) -> None:
    """Assert that every file under its final name can be read completely."""
    readers = {
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".csv": lambda path: list(csv.DictReader(io.StringIO(path.read_text()), strict=True)),
        ".json": lambda path: json.loads(path.read_text()),
        ".parquet": pq.read_table,
        ".png": lambda path: Image.open(path).load(),
        ".safetensors": load_file,
    }
    for path in folder.rglob("*"):
        within = path.relative_to(folder).parts
        if path.is_file() and path.suffix in readers and not any(part.endswith(".tmp") for part in within):
            readers[path.suffix](path)
