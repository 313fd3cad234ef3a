"""``transferkit embed`` from its arguments to its file, and when it is stopped."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.backbones.families import save
from tests.running import transferkit
from transferkit.data.embeddings import Embeddings
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward


@pytest.fixture(autouse=True)
def here(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder with ``photos/`` and the extractor ``vit/``."""
    monkeypatch.chdir(photo_folder.parent)
    save("vit", Path("vit"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def program(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """The program in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "transferkit", *arguments]
    return subprocess.Popen(command, text=True, env=environment, **pipes, **options)


def many_photos(count: int) -> None:
    """More images, in ``many/``."""
    noise = np.random.default_rng(0)
    Path("many").mkdir()
    for number in range(count):
        Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(f"many/{number:05d}.png")


def test_a_folder_becomes_a_table() -> None:
    done = transferkit("embed", "photos", "--extractor", "vit", "--out", "e.parquet", "--batch-size", "5")
    assert done.status == 0, done.err
    assert re.search(r"images.*skipped.*width.*seconds.*images/s", done.out)
    assert re.search(r"24 .* 0 .* 32 ", done.out)
    assert done.err.splitlines()[-2:] == ["written: e.parquet", "next: transferkit evaluate e.parquet"]
    table = Embeddings.load("e.parquet")
    files = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.*"))
    assert list(table.paths) == files
    assert table.labels[0] == "apples" and set(table.splits) == {"train", "val"}
    extractor = Extractor.from_pretrained("vit")
    oracle = extractor.embed([f"photos/{path}" for path in files])
    torch.testing.assert_close(table.embedding, oracle, atol=1e-5, rtol=0)
    assert (table.metadata["extractor"], table.metadata["batch_size"]) == ("vit", 5)
    again = transferkit("embed", "photos", "--extractor", "vit", "--out", "e.parquet", "--batch_size", "5")
    assert "done in an earlier run: 24 images" in again.err


def test_json_is_one_object() -> None:
    Path("photos/val/limes/0.jpg").write_bytes(b"")
    done = transferkit(
        "embed", "photos", "--extractor=vit", "--out=e.parquet", "--on-error", "skip", "--layer", "block 0",
        "--features", "tokens", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert (result["images"], result["shape"], result["out"]) == (23, [16, 32], "e.parquet")
    assert result["skipped"] == {"val/limes/0.jpg": "empty file"}
    assert "left out: val/limes/0.jpg (empty file)" in done.err and "next:" not in done.err


def test_options_reach_the_table() -> None:
    options = ("--precision", "bf16", "--normalize", "true", "--pooling", "mean", "--workers", "1")
    done = transferkit("embed", "photos", "--extractor", "vit", "--out", "shards/", *options)
    assert done.status == 0, done.err
    table = Embeddings.load("shards")
    assert (table.metadata["dtype"], table.metadata["normalize"], table.metadata["pooling"]) == (
        "bfloat16",
        True,
        "mean",
    )
    torch.testing.assert_close(table.embedding.norm(dim=1), torch.ones(24))
    assert len(pd.read_parquet("shards/")) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "photos"], "photos is a folder; end --out in a slash"),
        (["--out", "t.csv"], r"t\.csv: tables of embeddings are Parquet; give t\.parquet"),
        (["--out", "photos/"], "photos holds something else than embeddings"),
        (["--out", "photos/val/limes/0.jpg"], r"0\.jpg holds something else than embeddings"),
        (["--out", "/proc/x/e.parquet"], r"cannot write /proc/x/e\.parquet"),
        (["--layer", "7"], "vit has no stage '7'; its stages: embeddings, block 0, block 1"),
        (["--features", "map"], "vit has tokens of"),
        (["--layer", "0", "--pooling", "mean"], "--pooling mean applies to .* output, not to --layer 0"),
        (["--batch-size", "0"], "--batch_size is 0; give 1 or more"),
        (["--precision", "16"], r"--precision is '16'; give '32', 'bf16'"),
        (["--trainer.strategy", "fsdp"], r"--trainer\.strategy is 'fsdp'; give 'auto', 'ddp'"),
        (["--preprocessing", "{size: 3}"], "--preprocessing has no field 'size'"),
    ],
)
def test_bad_input_gets_one_line(options: list[str], message: str) -> None:
    done = transferkit("embed", "photos", "--extractor", "vit", *options)
    assert done.status == 2 and done.out == ""
    assert len(done.err.splitlines()) == 1 and re.search(message, done.err), done.err


def test_unreadable_images_are_all_named() -> None:
    for name in ("train/apples/0.jpg", "val/limes/3.png"):
        Path("photos", name).write_bytes(b"no picture")
    done = transferkit("embed", "photos", "--extractor", "vit", "--out", "e.parquet")
    assert done.status == 2 and not Path("e.parquet").exists()
    assert re.search(r"2 broken images: 'train/apples/0.jpg': .*; 'val/limes/3.png': .*--on_error skip", done.err)


def test_an_interrupted_run_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Forward, pixels: Tensor, stopped: Any = None) -> Tensor:
        raise KeyboardInterrupt

    arguments = ["embed", "photos", "--extractor", "vit", "--out", "my table.parquet"]
    with monkeypatch.context() as patch:
        patch.setattr(Forward, "__call__", interrupt)
        stopped = transferkit(*arguments)
    assert stopped.status == 130 and not Path("my table.parquet").exists()
    (line,) = [line for line in stopped.err.splitlines() if "resume with" in line]
    assert shlex.split(line.partition("resume with: ")[2]) == ["transferkit", *arguments]
    assert transferkit(*arguments).status == 0


@pytest.mark.slow
def test_one_process_does_without_lightning() -> None:
    code = "import sys; from transferkit import cli; cli.run(sys.argv[1:]); sys.exit('lightning' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "embed", "photos", "--extractor", "vit", "--out", "e.parquet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and Path("e.parquet").is_file(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_two_seconds(number: signal.Signals) -> None:
    many_photos(2000)
    process = program("embed", "many", "--extractor", "resnet18", "--weights", "none", "--out", "e.parquet")
    while not any(Path().glob(".e.parquet.*.parts")):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    time.sleep(2)
    start = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 2
    assert "resume with: transferkit embed many" in errors
    assert process.returncode == 130 and not Path("e.parquet").exists()


@pytest.mark.slow
def test_two_processes_write_what_one_does() -> None:
    many_photos(67)
    one = ["embed", "many", "--extractor", "vit", "--batch-size", "4", "--out"]
    assert transferkit(*one, "one.parquet").status == 0
    two = program(
        *one, "two.parquet", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator=cpu"
    )
    out, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    assert out.count("images/s") == 1 and errors.splitlines()[0].startswith("written: "), errors
    assert Path("one.parquet").read_bytes() == Path("two.parquet").read_bytes()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "transferkit"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    started = subprocess.run([*command, *one, "run.parquet"], env=environment, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    assert Path("one.parquet").read_bytes() == Path("run.parquet").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_process_that_dies_leaves_none_waiting(victim: str) -> None:
    many_photos(67)
    line = (
        "import os, sys; from transferkit import cli; from transferkit.extractor.forward import Forward\n"
        f"rank = {0 if victim == 'first' else 1}\n"
        "def die(*arguments):\n    os._exit(9)\n"
        "if int(os.environ.get('LOCAL_RANK', 0)) == rank: Forward.__call__ = die\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    Path("dying.py").write_text(line)
    options = ["--extractor", "vit", "--batch-size", "4", "--out", "e.parquet", "--trainer.devices", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "dying.py", "embed", "many", *options], env=environment, timeout=200)
    assert done.returncode != 0 and not Path("e.parquet").exists()
    assert time.monotonic() - start < 120
