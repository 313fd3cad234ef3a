"""A fit that was interrupted and resumed ends with the weights of one left alone, to the bit."""

import csv
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.running import Done, transferkit, write_photos
from tests.tiny import RESNET, VIT, options
from transferkit.training.module import TransferModule

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
EPOCHS = 4
REGIMES: dict[str, list[str]] = {
    "solved": options("model", RESNET),  # the default: one step per strength of regularization
    "frozen": options("model", {**RESNET, "dropout": 0.3}),
    "full": [*options("model", {**VIT, "regime": "full", "dropout": 0.3}), "--data.augmentation", "strong"],
    "lp-ft": options("model", {**VIT, "regime": "lp-ft", "dropout": 0.3}),
    "stages": options("model", {**VIT, "regime": "stages", "dropout": 0.3}),
    "partial": [*options("model", {**RESNET, "regime": "partial", "dropout": 0.3}), "--data.augmentation", "light"],
}
# Kills itself in the third epoch or later: between two batches, or when a file is about to take its name.
KILLER = """
import os, signal, sys
from transferkit import cli
from transferkit.training.module import TransferModule
moment, *arguments = sys.argv[1:]
epoch, step, replace = -1, TransferModule.training_step, os.replace
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def training_step(self, batch, batch_idx):
    global epoch
    epoch = self.current_epoch
    if (epoch, batch_idx, moment) == (2, 1, "batch"):
        kill()
    return step(self, batch, batch_idx)
def replacing(source, target):
    if epoch >= 2 and str(target).endswith(moment):
        kill()
    replace(source, target)
TransferModule.training_step, os.replace = training_step, replacing
sys.exit(cli.run(arguments))
"""


@pytest.fixture(autouse=True)
def own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", COLOURS, {"train": 6, "val": 3})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with chdir(tmp_path):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


def command(regime: str, name: str) -> list[str]:
    data = ["--data.root", "photos", "--data.num_workers", "0", "--data.batch_size", "4"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", str(EPOCHS)]
    return ["fit", *REGIMES[regime], *data, *trainer, "--name", name, "--seed_everything", "7"]


def ends_alike(one: Path, other: Path) -> bool:
    """Whether two runs left the same weights, optimiser state and table, to the bit."""
    for name in ("last", "best"):
        a, b = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (one, other))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "callbacks"):
            assert same(a[part], b[part]), f"{part} of {name}.ckpt differs"
    rows = [[{**row, "epoch_time": ""} for row in table(run)] for run in (one, other)]
    trained = [row["epoch"] for row in rows[0] if row["epoch"] != "0"]  # before the first: a head that starts trained
    assert trained == [str(epoch + 1) for epoch in range(EPOCHS)]
    assert rows[0] == rows[1]
    return True


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def interrupt(regime: str, name: str, number: int, monkeypatch: pytest.MonkeyPatch, epoch: int = 2) -> Done:
    """Start a fit in this process and send it a signal within an epoch."""
    step = TransferModule.training_step

    def training_step(self: TransferModule, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.current_epoch == epoch and batch_idx == 1:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TransferModule, "training_step", training_step)
        return transferkit(*command(regime, name))


def kill(regime: str, name: str, moment: str) -> None:
    """Start a fit in another process that kill -9 ends."""
    line = [sys.executable, "-c", KILLER, moment, *command(regime, name)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("regime", "number"),
    [
        ("frozen", signal.SIGINT),
        ("full", signal.SIGTERM),
        pytest.param("partial", signal.SIGTERM, marks=pytest.mark.kill),
    ],
)
def test_interrupted_by_a_signal(regime: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert transferkit(*command(regime, "whole")).status == 0
    done = interrupt(regime, "cut", number, monkeypatch)
    assert done.status == 130 and done.out == ""
    resume = done.err.split("interrupted; resume with: ")[1].splitlines()[0]
    program, *arguments = shlex.split(resume)  # as printed
    assert program == "transferkit"
    resumed = transferkit(*arguments)
    assert resumed.status == 0, resumed.err
    assert resumed.out.splitlines()[-1] == "run runs/cut/0"
    assert ends_alike(Path("runs/whole/0"), Path("runs/cut/0"))


@pytest.mark.kill
@pytest.mark.parametrize(
    ("regime", "moment"),
    [
        ("full", "batch"),
        ("lp-ft", "batch"),
        ("lp-ft", "last.ckpt"),
        ("stages", "batch"),
        ("stages", "last.ckpt"),
        ("solved", "last.ckpt"),
        ("solved", "metrics.csv"),
        ("frozen", "last.ckpt"),
        ("frozen", "batch"),
        ("frozen", "metrics.csv"),
        ("full", "last.ckpt"),
        ("partial", "metrics.csv"),
        ("partial", "last.ckpt"),
    ],
)
def test_killed(regime: str, moment: str) -> None:
    assert transferkit(*command(regime, "whole")).status == 0
    kill(regime, "cut", moment)
    resumed = transferkit("fit", "--ckpt_path", "last", "--name", "cut")
    assert resumed.status == 0, resumed.err
    assert ends_alike(Path("runs/whole/0"), Path("runs/cut/0"))
    assert not list(Path("runs/cut/0").rglob("*.tmp"))


def test_interrupted_before_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    done = interrupt("full", "cut", signal.SIGINT, monkeypatch, epoch=0)
    assert done.status == 130
    assert "before the first checkpoint; start the same command again" in done.err
    assert not Path("runs").exists()


def test_a_checkpoint_of_an_unfinished_fit_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt("frozen", "cut", signal.SIGINT, monkeypatch)
    done = transferkit("validate", "--ckpt_path", "last", "--json")
    assert done.status == 0, done.err
    assert transferkit("export", "last", "--name", "cut").status == 0


def test_other_weights_under_a_resumed_head(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt("frozen", "cut", signal.SIGINT, monkeypatch)
    done = transferkit("fit", "--ckpt_path", "last", "--seed_everything", "8")  # another random backbone
    assert done.status == 2 and "weights are not those that the interrupted fit started from" in done.err
    assert Path("runs/cut/0/checkpoints/last.ckpt").is_file()
