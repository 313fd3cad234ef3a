"""fit, validate, test and predict from the command line, in this process."""

import csv
import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import accuracy_score, f1_score

from tests.running import Done, refused, transferkit, write_photos
from tests.tiny import RESNET, options
from transferkit.data.batches import ImageBatchDataset
from transferkit.data.embeddings import Embeddings
from transferkit.training.module import TransferModule
from transferkit.training.run_directory import write_metrics

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60), "plums": (90, 40, 130)}
SMALL = [*options("model", RESNET), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
FIT = [*SMALL, "--data.batch_size", "8", "--trainer.max_epochs", "3"]
LOGGED = {"train/loss", "val/loss", "val/acc", "val/f1_macro", "val/ece", "val/epoch", "epoch_time", "lr/head"}
LOGGED |= {"head/C"}  # of a head that is solved for
TESTED = {"test/loss", "test/acc", "test/f1_macro", "test/ece", "test/epoch"}


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a run tells its processes is not told to those of the next test."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder with photos, and in it a finished run of its own name; what the fit said."""
    place = tmp_path_factory.mktemp("trained")
    write_photos(place / "photos", COLOURS, {"train": 6, "val": 4, "test": 5})
    with chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(place / "cache"))
        done = transferkit("fit", "--config", "resnet18", "--data.root", "photos", *FIT, "--name", "tiny")
    return place, done


@pytest.fixture
def work(trained: tuple[Path, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    place = tmp_path / "work"
    shutil.copytree(trained[0], place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(place / "cache"))
    return place


def printed(done: Done) -> dict[str, float]:
    """Metrics by name, from what was printed."""
    lines = (line.split() for line in done.out.splitlines() if "/" in line.split()[0] or line.startswith("epoch"))
    return {name: float(value) for name, value in lines}


def metrics_of(run: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return content


def test_run_directory(trained: tuple[Path, Done]) -> None:
    place, done = trained
    assert done.status == 0, done.err
    run = place / "runs/tiny/0"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    events = {name for name in names if re.fullmatch(r"events\.out\.tfevents\.[^/]+", name)}
    assert len(events) == 1
    assert names - events == {
        "config.yaml",
        "metrics.json",
        "metrics.csv",
        "splits.parquet",
        "report.html",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    }
    assert [path.name for path in place.iterdir() if path.name not in ("photos", "cache")] == ["runs"]


def test_what_fit_prints(trained: tuple[Path, Done]) -> None:
    place, done = trained
    assert done.out.splitlines()[-1] == "run runs/tiny/0"
    assert set(printed(done)) == LOGGED == set(metrics_of(place / "runs/tiny/0"))
    for name, value in metrics_of(place / "runs/tiny/0").items():
        assert printed(done)[name] == pytest.approx(value, rel=1e-3, abs=1e-4)
    assert "next: transferkit test --ckpt_path runs/tiny/0/checkpoints/best.ckpt" in done.err
    assert "18 train, 12 val, 15 test images" in done.err and "learn" in done.err
    assert "arn" not in done.err.replace("learn", "")  # no warning


def test_metrics_are_those_of_the_best_epoch(trained: tuple[Path, Done]) -> None:
    run = trained[0] / "runs/tiny/0"
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row.pop("epoch") for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda row: (row["val/acc"], -row["val/loss"]))
    assert metrics_of(run) == pytest.approx(best | {"val/epoch": rows.index(best) + 1})


def test_recorded_configuration(trained: tuple[Path, Done]) -> None:
    config = yaml.safe_load((trained[0] / "runs/tiny/0/config.yaml").read_text())
    assert list(config) == ["seed_everything", "trainer", "model", "data", "name"]
    assert config["model"]["weights"] == "none" and config["data"]["root"] == "photos"
    splits = pq.read_table(trained[0] / "runs/tiny/0/splits.parquet").to_pandas()
    assert splits["split"].value_counts().to_dict() == {"train": 18, "test": 15, "val": 12}


def test_test_writes_into_the_run(work: Path) -> None:
    before = metrics_of(work / "runs/tiny/0")
    done = transferkit("test", "--name", "tiny")
    assert done.status == 0, done.err
    run = work / "runs/tiny/0"
    assert {"predictions.parquet", "embeddings.parquet", "similarity.json"} <= {path.name for path in run.iterdir()}
    assert re.search(r"^written into it: .*, report\.html$", done.err, re.MULTILINE)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert f'value="{metrics_of(run)["test/f1_macro"]}" data-source="metrics.json test/f1_macro"' in html
    assert html.count("<image ") == 15
    merged = metrics_of(run)
    assert set(merged) == LOGGED | TESTED and set(printed(done)) == TESTED
    assert {name: merged[name] for name in LOGGED} == before
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    assert list(table) == ["path", "label", "prediction", "probability", "calibrated_probability"] and len(table) == 15
    assert table["probability"].dtype == "float32"
    assert table["path"].is_monotonic_increasing and table["probability"].between(1 / 3, 1).all()
    assert merged["test/acc"] == pytest.approx(accuracy_score(table["label"], table["prediction"]))
    f1 = f1_score(table["label"], table["prediction"], average="macro")
    assert merged["test/f1_macro"] == pytest.approx(f1, abs=1e-6)
    embeddings = Embeddings.load(run / "embeddings.parquet")
    assert embeddings.embedding.shape == (15, 512) and embeddings.paths == table["path"].tolist()
    similarity = json.loads((run / "similarity.json").read_text())
    assert similarity["rows"] == 15 and 0 <= similarity["precision_at_1"] <= 1
    assert all(isinstance(value, int | float) for value in similarity.values())


@pytest.mark.parametrize("which", ["best", "last", "runs/tiny/0/checkpoints/last.ckpt"])
def test_validate_any_checkpoint(work: Path, which: str) -> None:
    done = transferkit("validate", "--ckpt_path", which)
    assert done.status == 0, done.err
    with (work / "runs/tiny/0/metrics.csv").open(newline="") as file:
        rows = [float(row["val/acc"]) for row in csv.DictReader(file)]
    assert printed(done)["val/acc"] == pytest.approx(max(rows) if which == "best" else rows[-1], abs=1e-4)


def test_predict_a_flat_folder_and_one_file(work: Path) -> None:
    (work / "flat").mkdir()
    for number, path in enumerate(sorted((work / "photos/val").rglob("*.*"))):
        shutil.copy(path, work / "flat" / f"{number}{path.suffix}")
    done = transferkit("predict", "--data.root", "flat")
    assert done.status == 0, done.err
    table = pq.read_table(work / "runs/tiny/0/predict/predictions.parquet").to_pandas()
    assert not (work / "runs/tiny/0/predictions.parquet").exists()  # that is the test's
    assert len(table) == 12 and table["label"].isna().all()
    assert set(table["prediction"]) <= set(COLOURS)
    one = transferkit("predict", "--data.root", "flat/3.png", "--ckpt_path", "best")
    assert one.status == 0, one.err
    alone = pq.read_table(work / "runs/tiny/0/predict-2/predictions.parquet").to_pandas()
    wanted = table[table["path"] == "3.png"].iloc[0]
    assert alone["path"].tolist() == ["3.png"] and alone["prediction"][0] == wanted["prediction"]
    assert alone["probability"][0] == pytest.approx(wanted["probability"], abs=1e-5)
    assert one.out.splitlines()[0].startswith(f"3.png {wanted['prediction']} ")


def test_other_data_with_fewer_classes(work: Path) -> None:
    write_photos(work / "others", {"plums": COLOURS["plums"]}, {"": 7})
    (work / "wrapped").mkdir()
    (work / "others").rename(work / "wrapped/others")
    shutil.move(work / "wrapped/others/plums", work / "wrapped/plums")
    (work / "wrapped/others").rmdir()
    done = transferkit("test", "--data.root", "wrapped")
    assert done.status == 0, done.err
    table = pq.read_table(work / "runs/tiny/0/predictions.parquet").to_pandas()
    assert len(table) == 7 and set(table["label"]) == {"plums"}


def test_other_data_with_an_unknown_class(work: Path) -> None:
    (work / "photos/val/plums").rename(work / "photos/val/mangos")
    done = transferkit("test", "--data.root", "photos/val")
    assert refused(done, "classes the checkpoint was not trained on: mangos; it knows apples, limes, plums")


@pytest.mark.slow
def test_a_checkpoint_far_from_its_run(work: Path) -> None:
    shutil.move("runs/tiny/0/checkpoints/best.ckpt", "mine.ckpt")
    done = transferkit("test", "--ckpt_path", "mine.ckpt", "--data.root", "photos", "--data.num_workers", "0")
    assert done.status == 0 and done.out.splitlines()[-1] == "run runs/test/0", done.err
    assert refused(transferkit("fit", "--ckpt_path", "mine.ckpt"), "mine.ckpt is not in a run to resume")


def test_the_checkpoint_decides_its_model(work: Path) -> None:
    done = transferkit("test", "--model.backbone", "resnet50")
    assert refused(done, "--model.backbone is decided by the checkpoint runs/tiny/0/checkpoints/best.ckpt")
    done = transferkit("test", "--model.pooling", "logits")
    assert refused(done, "was trained with pooling avg, not logits")


def test_splits_of_a_run_are_its_own(work: Path) -> None:
    done = transferkit("validate", "--data.val_fraction", "0.5")
    assert refused(done, "--data.val_fraction 0.5: the splits are those of runs/tiny/0; leave it out")


def test_head_input_follows_the_checkpoint(work: Path) -> None:
    done = transferkit("fit", "--data.root", "photos", *FIT, "--model.l2_normalize", "true", "--name", "l2")
    shutil.move("runs/l2/0/checkpoints/last.ckpt", "mine.ckpt")
    other = transferkit("validate", "--ckpt_path", "mine.ckpt", "--data.root", "photos", "--data.num_workers", "0")
    assert done.status == other.status == 0, other.err
    with (work / "runs/l2/0/metrics.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert printed(other)["val/loss"] == pytest.approx(float(last["val/loss"]), abs=1e-3)


def test_a_finished_fit_can_be_continued(work: Path) -> None:
    done = transferkit("fit", "--ckpt_path", "last", "--trainer.max_epochs", "5", "--data.num_workers", "1")
    assert done.status == 0, done.err
    with (work / "runs/tiny/0/metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5"]
    config = yaml.safe_load((work / "runs/tiny/0/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 5 and config["data"]["splits"] is None
    assert [path.name for path in (work / "runs/tiny").iterdir()] == ["0"]


def test_a_run_that_was_never_validated(work: Path) -> None:
    done = transferkit("fit", "--data.root", "photos", *FIT, "--trainer.limit_val_batches", "0", "--name", "blind")
    assert done.status == 0 and "no validation ran, so there is no best.ckpt" in done.err, done.err
    assert "next: transferkit test --ckpt_path runs/blind/0/checkpoints/last.ckpt" in done.err
    assert set(printed(done)) == {"train/loss", "epoch_time", "lr/head", "head/C"}
    assert set(printed(done)) == set(metrics_of(work / "runs/blind/0"))
    for verb in (["test", "--name", "blind"], ["export", "best", "--name", "blind"]):
        done = transferkit(*verb)
        assert done.status == 0, done.err
    assert metrics_of(work / "runs/blind/0")["test/epoch"] == 3


def test_fast_dev_run_keeps_nothing(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")}
    for arguments in (
        ["fit", "--data.root", "photos", *FIT, "--name", "quick"],
        ["test", "--name", "tiny"],
        ["predict", "--data.root", "photos/val", "--name", "tiny"],
    ):
        done = transferkit(*arguments, "--trainer.fast_dev_run", "true")
        assert done.status == 0 and "run " not in done.out, done.err
    assert {path: path.stat().st_mtime_ns for path in (work / "runs").rglob("*")} == before


@pytest.mark.parametrize("epochs", ["2", "0"])
def test_a_refused_resume_leaves_the_run_as_it_was(work: Path, epochs: str) -> None:
    before = {path: path.read_bytes() for path in (work / "runs").rglob("*") if path.is_file()}
    done = transferkit("fit", "--ckpt_path", "last", "--trainer.max_epochs", epochs)
    assert refused(done, f"--trainer.max_epochs is {epochs}, the checkpoint has completed 3; give more")
    assert {path: path.read_bytes() for path in (work / "runs").rglob("*") if path.is_file()} == before


def test_a_resume_with_a_broken_table_of_metrics_begins_nothing(work: Path) -> None:
    rows = work / "runs/tiny/0/metrics.csv"
    rows.write_bytes(b"epoch,val/acc\nfirst,\xff\n")
    before = {path: path.read_bytes() for path in (work / "runs").rglob("*") if path.is_file()}
    done = transferkit("fit", "--ckpt_path", "last", "--trainer.max_epochs", "4")
    assert refused(done, "metrics.csv is broken") and "parameters" not in done.err
    assert {path: path.read_bytes() for path in (work / "runs").rglob("*") if path.is_file()} == before


def test_figures_say_which_checkpoint_they_are_of(work: Path) -> None:
    run = work / "runs/tiny/0"
    done = transferkit("test", "--name", "tiny", "--ckpt_path", "last", "--json")
    content = json.loads(done.out)
    assert content["run"] == "runs/tiny/0" and content["metrics"]["test/epoch"] == 3
    events = {name for name in content["written"] if "tfevents" in name}
    assert len(events) == 1 and events < {path.name for path in run.iterdir()}  # not the fit's
    assert {"metrics.json", "predictions.parquet", "similarity.json"} < set(content["written"])
    assert "checkpoints/best.ckpt" not in content["written"]
    assert metrics_of(run).items() >= content["metrics"].items()
    write_metrics(run, metrics_of(run) | {"test/epoch": 9})  # as if best.ckpt had been that of epoch 9 when tested
    resumed = transferkit("fit", "--ckpt_path", "last", "--trainer.max_epochs", "4")
    assert "the test results in runs/tiny/0 belong to another checkpoint; test again" in resumed.err
    assert set(metrics_of(run)) == LOGGED


@pytest.mark.slow
def test_the_export_of_a_tested_run_has_its_figures(work: Path) -> None:
    run = work / "runs/tiny/0"
    transferkit("test", "--name", "tiny")
    cards = {}
    for which in ("best", "last"):
        done = transferkit("export", which, "--name", "tiny", "--overwrite")
        assert done.status == 0 and "written: runs/tiny/0/extractor" in done.err, done.err
        cards[which] = (run / "extractor/README.md").read_text(encoding="utf-8")
        epoch = 3 if which == "last" else int(metrics_of(run)["val/epoch"])
        assert f"{which}\\.ckpt, epoch {epoch}" in cards[which]
        write_metrics(run, metrics_of(run) | {"test/epoch": 9})  # of another checkpoint
    assert "test/acc" in cards["best"] and "n = 15" in cards["best"] and "slightly optimistic" in cards["best"]
    assert "test/acc" not in cards["last"] and "slightly optimistic" not in cards["last"]


def test_a_fit_that_diverges(work: Path) -> None:
    done = transferkit("fit", "--data.root", "photos", *FIT, "--model.lr_head", "1e300", "--name", "diverging")
    assert done.status == 2
    assert "the training has diverged: the loss of epoch 1 is not finite; give lower rates: " in done.err
    assert not (work / "runs/diverging").exists()


ENDS = {
    "out of memory": (MemoryError(), 2),
    "out of the GPU's": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2),
    "out of the allocator's": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2),
    "no rights": (PermissionError(errno.EACCES, "Permission denied", "cache"), 2),
    "interrupted": (KeyboardInterrupt(), 130),
    "a fault": (ZeroDivisionError("x"), None),
    "a fault of a step": (KeyError("x"), None),
}


@pytest.mark.parametrize(("end", "epoch"), [*((end, 0) for end in ENDS), ("a fault", 1)])
def test_a_fit_that_ends_before_its_first_checkpoint_leaves_nothing(
    end: str, epoch: int, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has a checkpoint keeps it, whatever ends it."""
    error, status = ENDS[end]
    begun = TransferModule.on_train_batch_start

    def fail(module: TransferModule, batch: Any, batch_idx: int) -> None:
        begun(module, batch, batch_idx)
        if module.current_epoch == epoch and batch_idx == 0:
            raise error

    monkeypatch.setattr(TransferModule, "on_train_batch_start", fail)
    command = ["fit", "photos", *FIT, "--name", "ended", "--model.lr_head", "0.01"]
    if status is None:
        with pytest.raises(type(error)):
            transferkit(*command)
    else:
        done = transferkit(*command)
        assert done.status == status, done.err
        assert status != 2 or done.err.splitlines()[-1].startswith("transferkit: error: ")
        assert "Traceback" not in done.err
    assert (work / "runs/ended").exists() is (epoch == 1)
    if epoch:
        assert (work / "runs/ended/0/checkpoints/last.ckpt").is_file()


def test_a_loading_process_that_is_killed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageBatchDataset, "__getitem__", lambda self, item: os.kill(os.getpid(), signal.SIGKILL))
    options = ["--data.cache", "off", "--data.num_workers", "1"]
    done = transferkit("fit", "--data.root", "photos", *FIT, *options, "--name", "killed")
    assert done.status == 2
    assert "a process that loads images was killed, perhaps out of memory; start fewer" in done.err.split("\n")[-2]
    assert not (work / "runs/killed").exists()


@pytest.mark.parametrize(
    "option", ["--model.lr_head=0.5", "--model.regime=full", "--data.batch_size=3", "--data.augmentation=light"]
)
def test_a_resumed_fit_keeps_model_and_data(work: Path, option: str) -> None:
    done = transferkit("fit", "--ckpt_path", "last", option)
    name, value = option.split("=")
    remedy = "resume with --name tiny --ckpt_path last alone, or"
    assert refused(done, f"{name} {value}, given or .* differs from the .* runs/tiny/0 was started with; {remedy}")
    assert (work / "runs/tiny/0/checkpoints/last.ckpt").is_file()
