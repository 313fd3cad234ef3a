"""Work that processes share before training: they wait for each other, and end together if one fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EACH = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
from torch import distributed
from transferkit.data import integrity
from transferkit.data.image_table import open_images
from transferkit.errors import UserError
import transferkit.runtime.ranks as ranks_module
from transferkit.runtime.ranks import joined, told_once

rank, scenario = int(sys.argv[1]), sys.argv[2]

def fail(where, error):
    if rank in where:
        raise error
    return rank

class OfTwo(Exception):  # which cannot be made of its message alone
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

def outcome(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

Path(f"begun-{rank}").touch()
while not Path(f"begun-{1 - rank}").exists():  # the time below is for what follows, not for their start
    time.sleep(0.02)
distributed.init_process_group("gloo", init_method=f"file://{Path.cwd()}/meet-{scenario}", rank=rank, world_size=2,
                               timeout=timedelta(seconds=60 if scenario == "told" else 3))
if scenario == "dies":
    def work():
        with joined() as ranks:
            return ranks.run_on_all(lambda: os.kill(os.getpid(), 9) if rank else 0)
    print(outcome(work))
    sys.exit()
if scenario == "results":
    import torch
    from transferkit.training.prediction_writer import PredictionWriter
    results = PredictionWriter(Path("run"))
    results.outputs = [{"row": torch.tensor([rank])}]
    results.write_merged = lambda trainer, module, split, merged: (time.sleep(4), print(merged["row"].tolist()))
    time.sleep(0 if rank else 4)
    results.write(None, None, "test")
    print("written")
    sys.exit()
if scenario == "told":
    for message, late in (("same", 0), ("same later", 1), (f"own {rank}", 0)):
        ranks_module.HEARING = 1.0 if "own" in message else 30.0
        time.sleep(late * rank)
        error = told_once(UserError(message))
        print(f"{type(error).__name__}: {error}")
        distributed.barrier()
    sys.exit()
verify = integrity.verify
integrity.verify = lambda *arguments: (time.sleep(0 if rank else 4), verify(*arguments))[1]  # longer than groups wait
time.sleep(0 if rank else 4)  # also before they meet
with joined() as ranks:
    found = integrity.verify_together(open_images("photos"), ranks)
    print({path: str(why) for path, why in found.items()})
    print(ranks.run_on_all(lambda: rank))
    print(outcome(lambda: ranks.run_on_all(lambda: fail([1], UserError("bad")))))
    print(outcome(lambda: ranks.run_on_all(lambda: fail([0, 1], UserError(f"bad {rank}")))))
    print(outcome(lambda: ranks.run_on_all(lambda: fail([1], ZeroDivisionError("ours")))))
    print(outcome(lambda: ranks.run_on_all(lambda: fail([1], OfTwo("this", "that")))))
    print(outcome(lambda: ranks.from_first(lambda: fail([0], UserError("first")))))
    print(ranks.from_first(lambda: rank))
distributed.destroy_process_group()
"""
SAID = [
    "{'a/0.png': 'no picture', 'a/1.png': 'no picture'}",
    "[0, 1]",
    "UserError: bad",
    "UserError: bad 0",
    "RuntimeError: ZeroDivisionError: ours",
    "RuntimeError: OfTwo: this and that",
    "UserError: first",
    "0",
]


def run(scenario: str) -> list[tuple[int, str]]:
    """Return exit status and stdout of each of two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "each.py", str(rank), scenario], env=environment, stdout=-1, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, text) for process, text in zip(both, said, strict=True)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    Path("each.py").write_text(EACH)
    Path("photos/a").mkdir(parents=True)
    for number in range(2, 6):
        Image.new("RGB", (8, 8)).save(f"photos/a/{number}.png")
    for number in range(2):  # one that either process finds
        Path(f"photos/a/{number}.png").write_bytes(b"no picture")


@pytest.mark.slow
def test_processes_wait_for_each_other_and_hear_of_each_others_failures() -> None:
    (first, said), (second, heard) = run("fails")
    assert (first, second) == (0, 0), (said, heard)
    lines, others = said.splitlines(), heard.splitlines()
    assert list(eval(lines[0])) == ["a/0.png", "a/1.png"] and lines[0] == others[0]
    assert lines[1:] == SAID[1:]
    told = [line.replace("UserError", "ToldByFirst") for line in SAID[1:]]
    own = ["ZeroDivisionError: ours", "OfTwo: this and that"]
    assert others[1:] == [*told[:3], *own, *told[5:]], "the first process tells the user"


@pytest.mark.slow
def test_what_all_of_them_refuse_is_said_once() -> None:
    (first, said), (second, heard) = run("told")
    assert (first, second) == (0, 0)
    assert said.splitlines() == ["UserError: same", "UserError: same later", "UserError: own 0"]
    assert heard.splitlines() == ["ToldByFirst: same", "ToldByFirst: same later", "UserError: own 1"]


@pytest.mark.slow
def test_results_are_waited_for() -> None:
    (first, said), (second, heard) = run("results")
    assert (first, second) == (0, 0)
    assert said.splitlines() == ["[0, 1]", "written"] and heard.splitlines() == ["written"]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others() -> None:
    begun = time.monotonic()
    (first, said), (second, _) = run("dies")
    assert (first, second) == (0, -9) and said.startswith("UserError: another process ended")
    assert time.monotonic() - begun < 30
