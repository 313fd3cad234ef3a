"""A fit tells how far it is: lines without a terminal, a bar with one."""

import math
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.running import transferkit, write_photos
from tests.tiny import RESNET, VIT, options
from transferkit.data.datamodule import ImageDataModule
from transferkit.runtime import progress
from transferkit.training import epoch_lines
from transferkit.training.epoch_lines import BatchLines, EpochLines, images_in
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer

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


def test_lines_within_a_long_pass_after_ten_seconds_and_then_every_thirty() -> None:
    now = 0.0
    lines, found = BatchLines("training epoch 1/2", 100, lambda: now), []
    for _ in range(100):
        now += 2
        found.append(lines.advance(32))
    assert [line for line in found if line] == [
        "training epoch 1/2: batch 5 of 100, 16 images/s, about 3:10 left",
        "training epoch 1/2: batch 20 of 100, 16 images/s, about 2:40 left",
        "training epoch 1/2: batch 35 of 100, 16 images/s, about 2:10 left",
        "training epoch 1/2: batch 50 of 100, 16 images/s, about 1:40 left",
        "training epoch 1/2: batch 65 of 100, 16 images/s, about 1:10 left",
        "training epoch 1/2: batch 80 of 100, 16 images/s, about 0:40 left",
        "training epoch 1/2: batch 95 of 100, 16 images/s, about 0:10 left",
    ]
    lines = BatchLines("test", math.inf, lambda: now)
    now += 20
    assert lines.advance(32) == "test: batch 1, 1.6 images/s", "an iterator without a length"


def test_images_are_counted_in_batches_of_any_form() -> None:
    rows = torch.zeros(7, 3, 4, 4)
    assert [images_in(batch) for batch in ({"scale": 1.0, "pixels": rows}, (rows, None), [rows], rows)] == [7] * 4
    assert images_in({}) == images_in("no batch") == images_in({"scale": torch.tensor(1.0)}) == 0


END = r"[\d,.]+ images/s, about \d+:\d\d left"


def test_a_fit_says_how_far_it_is_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FIRST_LINE", "NEXT_LINE"):
        monkeypatch.setattr(progress, name, 0.0)
    module, data = TransferModule(**VIT, regime="full"), ImageDataModule("photos", batch_size=2, num_workers=0)
    trainer = make_trainer(Path("run"), max_epochs=2, accelerator="cpu", logger=False, callbacks=[EpochLines()],
                           enable_progress_bar=False)  # fmt: skip
    trainer.fit(module, data)
    said = capsys.readouterr().err  # of 12 images in batches of 2, then 8 of val
    assert re.findall(rf"(?m)^training epoch (\d)/2: batch (\d) of 6, {END}$", said) == [
        (epoch, batch) for epoch in "12" for batch in "12345"
    ]
    assert re.findall(rf"(?m)^validation: batch (\d) of 4, {END}$", said) == ["1", "2", "3"] * 2


@pytest.mark.slow
def test_test_and_predict_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_LINE", "NEXT_LINE"):
        monkeypatch.setattr(progress, name, 0.0)
    small = ["--data.batch_size", "2", "--data.cache", "off", "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    assert transferkit(*FIT, *small, "--model.regime", "full").status == 0
    for verb, title in (("validate", "validation"), ("test", "test"), ("predict", "prediction")):
        done = transferkit(verb, *(["photos/val"] if verb == "predict" else []), *small)
        assert done.status == 0, done.err
        assert re.findall(rf"(?m)^{title}: batch (\d) of 4, {END}$", done.err) == ["1", "2", "3"], done.err


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
    assert "images/s" in text and "it/s" not in text
