"""SIGINT and SIGTERM are answered at once and end a command soon; the command printed to resume works."""

import json
import os
import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kill.children import finish, start
from tests.kill.traces import traces
from tests.running import write_photos
from tests.tiny import RESNET, VIT, options

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
NET = "shufflenet_v2_x0_5"
RANDOM = ["--extractor", NET, "--weights", "none"]
ANSWER, END = 2.0, 20.0  # seconds; a step must end, on a busy machine
FIT = ["fit", "--data.root", "photos", "--name", "cut", "--trainer.accelerator", "cpu"]
COMMANDS = {
    "fit": [*FIT, *options("model", VIT), "--model.regime", "full", "--trainer.max_epochs", "500"],
    "fit with workers": [*FIT, *options("model", RESNET), "--data.cache", "off", "--data.num_workers", "2"],
    "embed": ["embed", "photos", *RANDOM],
    "probe": ["probe", "photos", *RANDOM],
    "benchmark": ["benchmark", "--extractors", json.dumps({"a": {"extractor": NET, "weights": "none"}})],
    "index": ["index", "photos", "--extractor", "extractor"],
}
COMMANDS["fit"] += ["--data.num_workers", "0", "--data.batch_size", "8"]
COMMANDS["benchmark"] += ["--datasets", '{"photos": "photos"}']
CASES = [(name, number) for name in COMMANDS for number in (signal.SIGINT, signal.SIGTERM)]


def wait(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition; return the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)
    return time.monotonic() - begun


@pytest.mark.kill
@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_signal_is_answered(name: str, number: signal.Signals, tmp_path: Path) -> None:
    folder, draw = tmp_path / "work", random.Random(f"{name} {number}")
    fits = name.startswith("fit")
    write_photos(folder / "photos", COLOURS, {"train": 40 if fits else 200, "val": 8})
    if name == "index":
        assert finish(["export", NET, "--weights", "none", "--out", "extractor"], folder).status == 0
    child = start(COMMANDS[name], folder, live=True)
    begins = "cut/0/checkpoints/last.ckpt" if fits else "*.parts"
    wait(lambda: any(folder.rglob(begins)), 120)
    time.sleep(draw.uniform(0, 0.2))
    said = tmp_path / "work.err"
    os.killpg(child.pid, number)  # as a terminal does
    wait(lambda: "stopping" in said.read_text() or "interrupted" in said.read_text(), ANSWER)
    child.join(END)
    errors = said.read_text()
    assert child.exitcode == 130, errors
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if "resume with: " in line]
    program, *arguments = shlex.split(line.partition("with: ")[2])
    assert program == "transferkit"
    if fits:
        arguments += ["--trainer.max_epochs", "1"]
    done = finish(arguments, folder)
    assert done.status == 0, done.err
    assert not [path for path in traces(folder) if path.endswith((".tmp", ".parts"))]
