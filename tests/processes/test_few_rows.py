"""With fewer images than processes, or one image per share, several processes give the result of one."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.running import Done, transferkit, write_photos
from tests.tiny import RESNET, VIT, options

ROOT = Path(__file__).parents[2]
COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
TRAINER = ["--trainer.accelerator", "cpu", "--data.num_workers", "0"]
THREE = ["--trainer.devices", "3", "--trainer.strategy", "ddp"]
FIT = ["--trainer.max_epochs", "2", "--seed_everything", "3"]
ONE_IMAGE = "path,label,split\ntrain/apples/1.png,apples,val\ntrain/limes/1.png,limes,test\n"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", "cache")
    write_photos(Path("photos"), COLOURS, {"train": 9})


def manifest(name: str, train: int) -> list[str]:
    """Write a manifest with a number of training images, one to validate and one to test; return the option."""
    paths = [f"train/{label}/{number}" for number in range(2, 9) for label in COLOURS][:train]
    rows = [f"{path}.{'png' if int(path[-1]) % 2 else 'jpg'},{path.split('/')[1]},train\n" for path in paths]
    Path("photos", name).write_text(ONE_IMAGE + "".join(rows))
    return ["--data.root", f"photos/{name}"]


def run(*arguments: str) -> Done:
    """Run the program in separate processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "transferkit", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return Done(done.returncode, done.stdout, done.stderr)


def curve(name: str) -> list[dict[str, float]]:
    with Path(f"runs/{name}/0/metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if "time" not in key} for row in csv.DictReader(file)]


def measured(name: str) -> dict[str, float]:
    values: dict[str, float] = json.loads(Path(f"runs/{name}/0/metrics.json").read_text())
    return {key: value for key, value in values.items() if "time" not in key}


def rows(name: str, file: str) -> list[dict[str, Any]]:
    return list(pq.read_table(f"runs/{name}/0/{file}.parquet").to_pylist())


@pytest.mark.parametrize("model", [[*options("model", VIT), "--model.regime", "full"], options("model", RESNET)])
def test_fewer_images_than_processes_of_each_split(model: list[str]) -> None:
    """3 training images, one per process, and 1 image each to validate, test and predict."""
    data = manifest("few.csv", 3)
    Path("one").mkdir()
    Path("one/x.png").write_bytes(Path("photos/train/limes/1.png").read_bytes())
    for name, more in (("one", ["--data.batch_size", "6"]), ("three", ["--data.batch_size", "2", *THREE])):
        program = run if name == "three" else transferkit
        done = program("fit", *model, *data, *TRAINER, *FIT, "--name", name, *more)
        assert done.status == 0, done.err
        for verb in (["test", *data], ["predict", "--data.root", "one"]):
            done = program(*verb, "--name", name, *TRAINER, *more)
            assert done.status == 0, done.err
    for one, three in zip(curve("one"), curve("three"), strict=True):
        assert one.keys() == three.keys() and one == pytest.approx(three, abs=1e-5)
    assert measured("one") == pytest.approx(measured("three"), abs=1e-5)
    for file in ("predictions", "predict/predictions"):
        (one_row,), (three_row,) = rows("one", file), rows("three", file)
        numbers = [name for name, value in one_row.items() if isinstance(value, float)]
        assert [one_row.pop(name) for name in numbers] == pytest.approx(
            [three_row.pop(name) for name in numbers], abs=1e-5
        )
        assert one_row == three_row


@pytest.mark.parametrize("train", [3, 7, 13])
def test_batchnorm_trains_on_no_lone_image(train: int) -> None:
    """Batches of 2 per process leave 1 image over, or one for each of two processes."""
    model = [*options("model", RESNET), "--model.regime", "full", "--data.batch_size", "2"]
    done = run("fit", *model, *manifest("lone.csv", train), *TRAINER, *FIT, *THREE)
    assert done.status == 0, done.err
