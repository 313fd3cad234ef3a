"""``transferkit predict`` without Lightning: what it writes and refuses is what Lightning's way does."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from lightning.pytorch import Trainer

from tests.running import refused, transferkit, write_photos
from tests.tiny import RESNET, options
from transferkit.cli.commands.predict import USUAL, find_trained, usual_options

FOLDER = "runs/tiny/0/predict"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with photos, a run and its export."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", {"plums": (90, 40, 90), "quinces": (210, 200, 60)}, {"train": 3, "val": 2})
    model = [*options("model", RESNET), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    for command in (
        ["fit", "photos", *model, "--trainer.max_epochs", "1", "--name", "tiny"],
        ["export", "best", "--out", "exported"],
    ):
        done = transferkit(*command)
        assert done.status == 0, done.err
    return tmp_path


SAME = [
    ["best", "photos"],
    ["best", "photos/train", "--config", "own.yaml"],
    ["exported", "photos"],
    ["runs/tiny/0", "photos", "--top_k", "2", "--json"],
    ["best", "photos/train/quinces/0.jpg", "--engine", "onnx"],
]


@pytest.mark.parametrize("asked", SAME, ids=" ".join)
def test_lightning_predicts_the_same(asked: list[str]) -> None:
    checkpoint, images, *given = asked
    Path("own.yaml").write_text("model: {lr_head: 0.1}\ndata: {image_root: elsewhere}\ntrainer: {max_epochs: 7}\n")
    found = []
    for more in ([], ["--trainer.devices", "1"]):  # the latter is an option of Lightning's Trainer
        done = transferkit("predict", images, "--ckpt_path", checkpoint, "--name", "tiny", *given, *more)
        assert done.status == 0, done.err
        folder = max(Path("runs").rglob("predictions.parquet"), key=lambda path: path.stat().st_mtime_ns).parent
        tables = [pq.read_table(folder / name) for name in ("predictions.parquet", "embeddings.parquet")]
        found.append((tables, (folder / "predictions.csv").read_bytes(), done.out.replace(str(folder.parent), "")))
        found[-1] = (*found[-1][:2], found[-1][2].replace(folder.name + "/", "predict/"))
    (first, first_csv, first_out), (second, second_csv, second_out) = found
    for one, other in zip(first, second, strict=True):
        assert one.equals(other) and one.schema.equals(other.schema, check_metadata=True)
    assert (first_csv, first_out) == (second_csv, second_out)


def test_lightning_is_imported_for_what_only_its_trainer_does(work: Path) -> None:
    script = "import sys; from transferkit.cli import run; run(sys.argv[1:]); print('lightning' in sys.modules)"
    for more, imported in (([], "False"), (["--trainer.limit_predict_batches", "1.0"], "True")):
        command = [sys.executable, "-c", script, "predict", "photos/train/quinces", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == imported, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("devices", 2), ("precision", "bf16-mixed"), ("strategy", "ddp"), ("limit_predict_batches", 1)],
)
def test_a_run_that_was_fitted_so_is_left_to_lightning(name: str, value: Any, work: Path) -> None:
    config = work / "runs/tiny/0/config.yaml"
    content = yaml.safe_load(config.read_text())
    content["trainer"][name] = value
    config.unlink()  # it is shared with other tests
    config.write_text(yaml.safe_dump(content))
    usual = usual_options(["--data.root", "photos"])
    assert usual and find_trained(usual) is None


@pytest.mark.parametrize("section", ["data: {rot: photos}", "trainer: {device: 1}", "modell: 3", "engin: onnx"])
def test_an_unknown_option_in_a_config_is_refused_as_by_lightning(section: str, work: Path) -> None:
    (work / "own.yaml").write_text(section)
    name = section.partition("{")[2].partition(":")[0] or section.partition(":")[0]
    assert refused(transferkit("predict", "photos", "--config", "own.yaml", "--name", "tiny"), name)
    assert not (work / FOLDER).exists()


def test_a_folder_of_runs_is_refused_in_options_of_the_command() -> None:
    assert refused(transferkit("predict", "photos", "--ckpt_path", "runs/tiny"), "runs/tiny/0, or --name tiny")


def test_one_process_among_others_is_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = usual_options(["--data.root", "photos"])
    assert usual and find_trained(usual)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert find_trained(usual) is None


def test_every_usual_value_of_the_trainer_is_an_option_of_it() -> None:
    parameters = inspect.signature(Trainer).parameters
    assert {name: parameters[name].default for name in USUAL if name != "fast_dev_run"} == {
        name: values[0] for name, values in USUAL.items() if name != "fast_dev_run"
    }
