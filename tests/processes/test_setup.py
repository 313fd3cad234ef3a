"""Before the first step: if one process fails, all end within seconds; two fits at once do not disturb each other."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import write_photos
from tests.tiny import RESNET, VIT, options
from transferkit.extractor.checkpoint_reader import load

ROOT = Path(__file__).parents[2]
COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
FIT = ["fit", "--data.root", "photos", "--data.num_workers", "0", "--trainer.max_epochs", "2"]
FIT += ["--trainer.accelerator", "cpu", "--data.batch_size", "4"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
MODELS = {"full": [*options("model", VIT), "--model.regime", "full"], "frozen": options("model", RESNET)}
FAILING = """
import os
from transferkit import cli
from transferkit.data import integrity
from transferkit.errors import UserError
verify = integrity.verify
def failing(*arguments):
    if int(os.environ.get("LOCAL_RANK", 0)) == 1:
        DO
    return verify(*arguments)
integrity.verify = failing
cli.main()
"""
WAYS = {  # how it ends, status of the command, what is said
    "killed": ("os.kill(os.getpid(), 9)", {2, -9}, "another process ended"),
    "refused": ("raise UserError('a disk that is there on one machine alone')", {2}, "there on one machine alone"),
    "a fault": ("raise ZeroDivisionError('ours')", {1, -9}, "ZeroDivisionError: ours"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"), COLOURS, {"train": 9, "val": 5})


def start(*arguments: str, script: str = "") -> "subprocess.Popen[str]":
    """Run the program in separate processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRANSFERKIT_CACHE": "cache"}
    command = [sys.executable, *([script] if script else ["-m", "transferkit"]), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return status and stderr; assert that no process hangs."""
    begun = time.monotonic()
    try:
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert time.monotonic() - begun < 60
    return process.returncode, err


@pytest.mark.parametrize("model", MODELS)
def test_an_image_that_only_the_second_process_finds_broken(model: str) -> None:
    Path("photos/train/apples/1.png").write_bytes(b"no picture")
    status, err = said(start(*FIT, *TWO, *MODELS[model]))
    assert status == 2, err
    assert err.count("\n") == 1 and err.startswith("transferkit: error: 1 broken image: 'train/apples/1.png'"), err
    assert not Path("runs").exists()


def test_what_every_process_refuses_is_said_once() -> None:
    status, err = said(start(*FIT, *TWO, *MODELS["full"], "--trainer.max_epochs", "-1"))
    assert status == 2 and err.startswith("transferkit: error: the cosine schedule needs an end"), err
    assert err.count("\n") == 1 and not Path("runs").exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_fails_before_training_ends_the_others(way: str) -> None:
    does, statuses, expected = WAYS[way]
    Path("failing.py").write_text(FAILING.replace("DO", does))
    status, err = said(start(*FIT, *TWO, *MODELS["full"], script="failing.py"))
    assert status in statuses, err
    assert expected in err
    if way == "refused":
        assert err.count("\n") == 1, err


@pytest.mark.parametrize("model", MODELS)
def test_two_fits_of_one_name_at_once_are_two_whole_runs(model: str) -> None:
    """They share the cache: embeddings, and the record of decoded images."""
    both = [start(*FIT, *MODELS[model], "--name", "same", "--json") for _ in range(2)]
    for process in both:
        status, err = said(process)
        assert status == 0 and "damaged" not in err, err
    assert sorted(path.name for path in Path("runs/same").iterdir()) == ["0", "1"]
    names = {"config.yaml", "metrics.csv", "metrics.json", "splits.parquet", "checkpoints"}
    metrics = []
    for run in (Path("runs/same/0"), Path("runs/same/1")):
        assert names <= {path.name for path in run.iterdir()} and not list(run.rglob("*.tmp"))
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert load(run / "checkpoints/last.ckpt")["epoch"] == 1
        values = json.loads((run / "metrics.json").read_text())
        metrics.append({name: value for name, value in values.items() if "time" not in name})
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
    assert not list(Path("cache").rglob("*.parts")) and not list(Path("cache").rglob("*.tmp"))
