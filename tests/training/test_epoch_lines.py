"""A fit tells how far it is: lines without a terminal, a bar with one."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import transferkit, write_photos
from tests.tiny import RESNET, options
from transferkit.training import epoch_lines

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
FIT = ["fit", *options("model", RESNET), "--data.root", "photos", "--data.num_workers", "0"]
FIT += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "4"]
LINE = r"epoch (\d+)/4  train/loss \d+\.\d{4}  val/loss \d+\.\d{4}  val/acc [01]\.\d{4}(  \d+:\d\d:\d\d left)?"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", COLOURS, {"train": 6, "val": 4})


@pytest.mark.parametrize(("seconds", "epochs"), [(0.0, ["1", "2", "3", "4"]), (1000.0, ["4"])])
def test_a_line_per_epoch_but_not_many(seconds: float, epochs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_lines, "SECONDS", seconds)
    done = transferkit(*FIT)
    found = [re.fullmatch(LINE, line) for line in done.err.splitlines() if line.startswith("epoch ")]
    assert done.status == 0 and all(found), done.err
    assert [line[1] for line in found if line] == epochs
    assert [bool(line[2]) for line in found if line] == [epoch != "4" for epoch in epochs]


def test_an_accuracy_is_told_of_its_epoch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_lines, "SECONDS", 0.0)
    done = transferkit(*FIT, "--trainer.check_val_every_n_epoch", "2")
    lines = [line for line in done.err.splitlines() if line.startswith("epoch ")]
    assert ["val/acc" in line for line in lines] == [False, True, False, True]


@pytest.mark.slow
def test_a_bar_on_a_terminal_shows_accuracy_and_the_time_left() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "200"}
    line = [sys.executable, "-m", "transferkit", *FIT, "--data.cache", "off", "--data.batch_size", "2"]
    child = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=theirs)
    said = b""
    while child.poll() is None or select.select([ours], [], [], 0.1)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            said += os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    text = said.decode(errors="replace")
    assert child.returncode == 0, text
    assert "Epoch 4/4" in text and "Epoch 0" not in text and "val/acc" in text and "fit ends in" in text
