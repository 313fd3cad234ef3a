"""Two processes train and evaluate like one, and none is left waiting for another."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.backbones.families import save
from tests.backbones.words import save_dual
from tests.running import transferkit, write_photos
from tests.tiny import RESNET, VIT, options
from transferkit.extractor import Extractor
from transferkit.training.trainer import seed_everything

ROOT = Path(__file__).parents[2]
COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
DATA = ["--data.root", "photos", "--data.num_workers", "0", "--seed_everything", "3"]
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "3"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
MODELS = {
    "full vit": [*options("model", VIT), "--model.regime", "full"],
    "lora vit": ["--model.backbone", "vit", "--model.regime", "lora"],
    "lp-ft vit": [*options("model", VIT), "--model.regime", "lp-ft"],
    "stages vit": [*options("model", VIT), "--model.regime", "stages"],
    "stages resnet": [*options("model", {**RESNET, "batchnorm": "eval"}), "--model.regime", "stages"],
    "partial vit": [*options("model", VIT), "--model.regime", "partial"],
    "frozen resnet, cached": options("model", RESNET),
    "frozen resnet, best of several rates": [*options("model", RESNET), "--model.lr_head", "auto"],
    "full vit, rate chosen": [*options("model", VIT), "--model.regime", "full", "--model.lr_backbone", "auto"],
    "checkpointed vit, balanced": [
        *options("model", {**VIT, "regime": "full", "gradient_checkpointing": True}),
        *options("data", {"balanced": True}),
    ],
    "frozen resnet": [*options("model", RESNET), "--data.cache", "off"],
    "scratch vit": [*options("model", VIT), "--model.regime", "scratch"],
    "lp-ft vit, averaged": options("model", {**VIT, "regime": "lp-ft", "ema": 0.5}),
    "full dual, from words": ["--model.backbone", "dual", "--model.head", "zeroshot", "--model.regime", "full"],
}
SEVERAL = ["--data.root", "labels.csv", "--data.multilabel", "true"]
NUMBER = ["--data.root", "numbers.csv"]
MODELS |= {
    f"{name}, {kind}": [*MODELS[name], *more]
    for kind, more in {"labels": SEVERAL, "number": NUMBER}.items()
    for name in ("full vit", "lp-ft vit", "lora vit", "stages vit", "frozen resnet, cached")
}
DYING = """
import os, sys
from transferkit import cli
from transferkit.training.module import TransferModule
step = TransferModule.training_step
def training_step(self, batch, batch_idx):
    if self.current_epoch == 1 and int(os.environ.get("LOCAL_RANK", 0)) == VICTIM:
        DIE
    return step(self, batch, batch_idx)
TransferModule.training_step = training_step
cli.main()
"""
WAYS = {"killed": "os.kill(os.getpid(), 9)", "an error": "raise ZeroDivisionError('said by rank VICTIM')"}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", "one")
    write_photos(Path("photos"), COLOURS, {"train": 9, "val": 7, "test": 4})
    shutil.copy("photos/train/apples/8.jpg", "photos/train/apples/9.jpg")
    Path("photos/val/limes/6.jpg").unlink()  # 19 train, 13 val, 7 test
    Path("photos/test/limes/3.png").unlink()
    seed_everything(0)
    Extractor.from_pretrained(VIT["backbone"], "none", None, None, VIT["architecture"]).save_pretrained("vit")
    save_dual("siglip", Path("dual"))
    files = sorted(Path("photos").rglob("*.*"))
    for name, column in (("labels", "label"), ("numbers", "target")):
        cells = [f"{file.parent.name}|odd" if row % 2 else file.parent.name for row, file in enumerate(files)]
        cells = cells if name == "labels" else [str(row % 7 + 0.5) for row in range(len(files))]
        lines = [f"{file},{cell},{file.parts[1]}" for file, cell in zip(files, cells, strict=True)]
        Path(f"{name}.csv").write_text("\n".join([f"path,{column},split", *lines]))


def run(*arguments: str, script: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the program in separate processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRANSFERKIT_CACHE": "two"}
    command = [sys.executable, *(script or ["-m", "transferkit"]), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def curve(name: str) -> list[dict[str, float]]:
    with Path(f"runs/{name}/0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))  # the row before the first epoch lacks what training logs
        return [{key: float(value) for key, value in row.items() if value and "time" not in key} for row in rows]


def measured(name: str) -> dict[str, float]:
    values: dict[str, float] = json.loads(Path(f"runs/{name}/0/metrics.json").read_text())
    return {key: value for key, value in values.items() if key.startswith("test/")}


def rows(name: str, file: str) -> list[dict[str, Any]]:
    return list(pq.read_table(f"runs/{name}/0/{file}.parquet").to_pylist())


@pytest.mark.parametrize("family", ["dinov2", "dinov3_vit", "clip_vision"])
def test_two_processes_train_networks_with_parameters_that_no_gradient_reaches(family: str) -> None:
    """DistributedDataParallel raises in the second step if one of its parameters has no gradient."""
    save(family, Path("network"))
    model = ["--model.backbone", "network", "--model.regime", "full", "--model.pooling", "cls"]
    done = run("fit", *model, *DATA, *TRAINER, *TWO, "--name", family)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("model", MODELS)
def test_one_process_is_two(model: str) -> None:
    """The same global batches of 6, 6 and 7, the last in shares of 4 and 3; val's last is one row, of the first.

    Balanced, there are 20 rows, in global batches of 8, 8 and 4.
    """
    size = 4 if "balanced" in model else 3
    command = ["fit", *DATA, *MODELS[model], *TRAINER, "--name"]
    alone = transferkit(*command, "one", "--data.batch_size", str(2 * size))
    assert alone.status == 0, alone.err
    done = run(*command, "two", "--data.batch_size", str(size), *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val/loss") == 1
    for one, two in zip(curve("one"), curve("two"), strict=True):
        assert one.keys() == two.keys() and one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize("model", ["full vit", "frozen resnet, cached"])
def test_a_fit_goes_on_with_another_number_of_processes(model: str) -> None:
    """The learning rates follow the share of the fit that is done; a head that is solved for gets the same values."""
    fit = ["fit", *MODELS[model], *DATA, "--trainer.accelerator", "cpu", "--data.batch_size", "3", "--name"]
    assert transferkit(*fit, "one", "--trainer.max_epochs", "2").status == 0
    shutil.copytree("runs/one", "runs/two")
    more = ["--ckpt_path", "last", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "4"]
    assert transferkit("fit", "--name", "one", *more).status == 0
    done = run("fit", "--name", "two", *more, *TWO)
    assert done.returncode == 0, done.stderr
    one, two = curve("one"), curve("two")
    assert [row["epoch"] for row in two] == [1, 2, 3, 4]
    if model == "full vit":
        batches = 3  # 19 rows in two processes' batches of 3: 6, 6 and 7
        shares = [(epoch + 0.5 / batches) / 4 for epoch in (2, 3)]
        wanted = [3e-3 * 0.5 * (1 + math.cos((share - 0.25) / 0.75 * math.pi)) for share in shares]
        assert [row["lr/head"] for row in two[2:]] == pytest.approx(wanted)
    else:
        for mine, theirs in zip(one, two, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)


def test_an_odd_number_of_images_is_measured_once_each() -> None:
    command = ["fit", *MODELS["full vit"], *DATA, *TRAINER, "--name"]
    assert transferkit(*command, "one").status == 0
    shutil.copytree("runs/one", "runs/two")
    assert transferkit("test", "--name", "one", *DATA).status == 0
    done = run("test", "--name", "two", *DATA, "--data.batch_size", "3", *TWO)
    assert done.returncode == 0, done.stderr
    assert measured("one") == pytest.approx(measured("two"), abs=1e-5)
    one_rows, two_rows = rows("one", "predictions"), rows("two", "predictions")
    assert len(two_rows) == 7, "none is padded or counted twice"
    for mine, theirs in zip(one_rows, two_rows, strict=True):
        assert {**mine, "probability": None} == {**theirs, "probability": None}
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    right = sum(row["label"] == row["prediction"] for row in two_rows)
    assert measured("two")["test/acc"] == pytest.approx(right / 7)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_others(rank: int, way: str) -> None:
    Path("dying.py").write_text(DYING.replace("DIE", WAYS[way]).replace("VICTIM", str(rank)))
    begun = time.monotonic()
    done = run("fit", *MODELS["full vit"], *DATA, *TRAINER, "--data.batch_size", "3", *TWO, script=["dying.py"])
    assert time.monotonic() - begun < 120
    assert done.returncode != 0
    if way == "an error":
        assert f"said by rank {rank}" in done.stderr
