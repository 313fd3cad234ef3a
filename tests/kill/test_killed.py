"""Commands killed with SIGKILL at random moments: started again, each leaves the same files as undisturbed."""

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.kill.children import finish, start
from tests.kill.traces import check_whole, traces
from tests.running import write_photos
from tests.tiny import RESNET, VIT, options

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
NET = "shufflenet_v2_x0_5"
RANDOM = ["--extractor", NET, "--weights", "none"]
FIT = ["--data.root", "PLACE/photos", "--data.num_workers", "0", "--data.batch_size", "8", "--name", "cut"]
FIT += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "4", "--seed_everything", "7"]
FULL = [*options("model", {**VIT, "regime": "full", "dropout": 0.3}), "--data.augmentation", "strong"]
GRID = {
    name: {"extractor": NET, "weights": "none", "pooling": pooling} for name, pooling in (("a", "avg"), ("b", None))
}
EXPORT = ["export", NET, "--weights", "none", "--out", "exported"]
INDEX = ["--extractor", "PLACE/extractor", "--out", "index"]


def go_on(folder: Path, arguments: list[str]) -> list[str]:
    """Return the command to start again with: the same, or one that resumes a fit or replaces a complete export."""
    if arguments[0] == "export" and (folder / "exported").exists() and "--overwrite" not in arguments:
        return [*arguments, "--overwrite"]
    resumable = arguments[0] == "fit" and any(folder.glob("runs/cut/*/checkpoints/last.ckpt"))
    return ["fit", "--ckpt_path", "last", "--name", "cut"] if resumable else arguments


@dataclass(frozen=True)
class Work:
    """A command to kill.

    Attributes:
        arguments: verb and options.
        times: number of kills.
        before: commands to run first, whose result stays complete until the new one replaces it.
        swapped: the directory that is replaced atomically.
    """

    arguments: list[str]
    times: int
    before: list[list[str]] = field(default_factory=list)
    swapped: str | None = None

    def at(self, place: Path) -> "Work":
        """Return the command for a folder of images."""
        first, *before = (
            [part.replace("PLACE", str(place)) for part in line] for line in [self.arguments, *self.before]
        )
        return replace(self, arguments=first, before=before)


WORKS = {
    "fit frozen": Work(["fit", *options("model", {**RESNET, "dropout": 0.3}), *FIT], 15),
    "fit full": Work(["fit", *FULL, *FIT], 15),
    "embed": Work(["embed", "PLACE/photos", *RANDOM, "--batch-size", "1", "--out", "e.parquet"], 12),
    "embed shards": Work(["embed", "PLACE/photos", *RANDOM, "--batch-size", "1", "--out", "e/"], 8),
    "benchmark": Work(
        ["benchmark", "--extractors", json.dumps(GRID), "--datasets", '{"photos": "PLACE/photos"}', "--fast"], 15
    ),
    "index": Work(["index", "PLACE/photos", *INDEX], 8, swapped="index"),
    "index again": Work(
        ["index", "PLACE/photos/all.csv", *INDEX, "--index", "HNSW8"],
        10,
        [["index", "PLACE/photos/few.csv", *INDEX, "--index", "HNSW8"]],
        "index",
    ),
    "export": Work(EXPORT, 8, swapped="exported"),
    "export again": Work([*EXPORT, "--overwrite"], 8, [["export", "resnet18", *EXPORT[2:]]], "exported"),
    "export onnx": Work([*EXPORT, "--onnx"], 1, swapped="exported"),
}  # 100 in all


def test_a_hundred_are_killed() -> None:
    assert sum(work.times for work in WORKS.values()) == 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, two manifests of them, and an extractor to index with."""
    place = tmp_path_factory.mktemp("killed")
    write_photos(place / "photos", COLOURS, {"train": 12, "val": 6, "test": 6})
    names = sorted(path.relative_to(place / "photos").as_posix() for path in (place / "photos").rglob("*.*"))
    for name, rows in (("few", names[::2]), ("all", names[3:])):
        (place / f"photos/{name}.csv").write_text("\n".join(["path", *rows]))
    (place / "made").mkdir()
    done = finish([*EXPORT[:-1], str(place / "extractor")], place / "made")
    assert done.status == 0, done.err
    return place


def prepare(folder: Path, work: Work) -> None:
    folder.mkdir()
    for arguments in work.before:
        done = finish(arguments, folder)
        assert done.status == 0, done.err


def kill(work: Work, folder: Path, draw: random.Random, seconds: float, changes: int) -> str:
    """Start a command and kill it, in turns at a random time and before a random file change; return the moment."""
    if draw.random() < 0.5:
        change = draw.randrange(changes)
        child = start(work.arguments, folder, change=change)
        child.join(300)
        assert child.exitcode == -signal.SIGKILL
        return f"before change {change} of {changes}"
    moment = draw.uniform(0, seconds)
    child = start(work.arguments, folder)
    time.sleep(moment)
    child.kill()
    child.join()
    return f"after {moment:.3f} of {seconds:.3f} s"


@pytest.mark.kill
@pytest.mark.parametrize("name", WORKS)
def test_killed_and_started_again(name: str, place: Path) -> None:
    try_kills(WORKS[name], WORKS[name].times, name, place)


def try_kills(work: Work, times: int, name: str, place: Path) -> None:
    work = work.at(place)
    draw, slug = random.Random(name), name.replace(" ", "-")
    whole, before = place / f"{slug}-whole", place / f"{slug}-before"
    prepare(before, work)
    shutil.copytree(before, whole)
    begun = time.monotonic()
    done = finish(work.arguments, whole)
    seconds = time.monotonic() - begun
    assert done.status == 0, done.err
    changes = int((place / f"{slug}-whole.changes").read_text())
    wanted = traces(whole)
    for number in range(times):
        folder = place / f"{slug}-{number}"
        shutil.copytree(before, folder)
        moment = kill(work, folder, draw, seconds, changes)
        check_whole(folder)
        if work.swapped:
            left = traces(folder / work.swapped)
            assert left in (traces(before / work.swapped), traces(whole / work.swapped)), moment
        again = finish(go_on(folder, work.arguments), folder)
        assert again.status == 0, f"killed {moment}: {again.err}"
        found = traces(folder)
        assert found.keys() == wanted.keys(), f"killed {moment}"
        assert [path for path in found if found[path] != wanted[path]] == [], f"killed {moment}"
        shutil.rmtree(folder)
