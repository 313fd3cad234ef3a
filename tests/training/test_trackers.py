"""Lightning's loggers beside the run's own TensorBoard files: options, metrics, report and card, offline."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from tests.running import transferkit
from tests.tiny import RESNET, options
from transferkit.training import trackers
from transferkit.training.fitting import fit
from transferkit.training.trainer import make_trainer, users_loggers

SMALL: dict[str, Any] = {**RESNET, "max_epochs": 1, "accelerator": "cpu", "num_workers": 0}
KEPT = {"config.yaml", "metrics.json", "metrics.csv", "report.html", "README.md"}


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", *trackers.OFFLINE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Own(Logger):
    """A logger of the user's own, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}
        self.values: dict[str, float] = {}
        self.files: dict[str, str] = {}

    name, version = "own", 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.options |= dict(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.values |= metrics

    def log_artifacts(self, folder: str) -> None:
        self.files = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}


def test_own_loggers_get_everything_beside_tensorboard(photo_folder: Path, tmp_path: Path) -> None:
    own = Own()
    run = fit(photo_folder, **SMALL, logger=[own, CSVLogger("logs")], out=tmp_path)
    assert own.options["model/backbone"] == "resnet18" and own.options["data/root"] == str(photo_folder)
    assert own.options["trainer/max_epochs"] == 1 and own.options["seed_everything"] == 0
    assert own.values["val/acc"] == run.metrics["val/acc"]
    assert set(own.files) == KEPT and "# resnet18" in own.files["README.md"]
    assert own.files["config.yaml"] == (run.path / "config.yaml").read_text()
    assert list(run.path.glob("events.*")) and list(Path("logs").rglob("metrics.csv"))
    hparams = yaml.safe_load(next(Path("logs").rglob("hparams.yaml")).read_text())
    assert hparams["model/regime"] == "frozen"


def test_a_trainer_has_both_or_none(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
    csv = CSVLogger(tmp_path)
    assert users_loggers(make_trainer(tmp_path, logger=csv, **quiet)) == [csv]
    assert len(make_trainer(tmp_path, logger=csv, **quiet).loggers) == 2
    assert make_trainer(tmp_path, logger=csv, tensorboard=False, **quiet).loggers == [csv]
    for given in (None, True):
        assert len(make_trainer(tmp_path, logger=given, **quiet).loggers) == 1
    assert make_trainer(tmp_path, logger=False, **quiet).loggers == []
    assert make_trainer(tmp_path, tensorboard=False, **quiet).loggers == []


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    trackers.offline_by_default()
    assert os.environ["WANDB_MODE"] == "online" and os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


@pytest.mark.slow
def test_mlflow_of_the_verb_keeps_files_and_metrics(photo_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    small = [*options("model", RESNET), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    fitted = transferkit(
        "fit", str(photo_folder), *small, "--trainer.max_epochs", "1", "--trainer.logger", "MLFlowLogger"
    )
    assert fitted.status == 0, fitted
    (place,) = [path.parent for path in tmp_path.glob("mlruns/*/*/artifacts")]
    assert {path.name for path in (place / "artifacts").iterdir()} == KEPT
    assert (place / "params/model/backbone").read_text() == "resnet18"
    assert (place / "metrics/val/acc").is_file() and list(tmp_path.glob("runs/fit/0/events.*"))
    tested = transferkit(
        "test", "--ckpt_path", "best", "--trainer.accelerator", "cpu", "--trainer.logger", "MLFlowLogger"
    )
    assert tested.status == 0, tested
    kept = [{path.name for path in folder.iterdir()} for folder in tmp_path.glob("mlruns/*/*/artifacts")]
    assert {*KEPT, "similarity.json"} in kept


@pytest.mark.slow
def test_mlflow_from_python(photo_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    trackers.offline_by_default()
    logger = MLFlowLogger("flowers", save_dir=str(tmp_path / "mlruns"))
    run = fit(photo_folder, **SMALL, logger=logger, out=tmp_path)
    recorded = logger.experiment.get_run(logger.run_id).data
    assert recorded.metrics["val/acc"] == run.metrics["val/acc"] and recorded.params["model/backbone"] == "resnet18"
    assert {each.path for each in logger.experiment.list_artifacts(logger.run_id)} == KEPT


def chunks(log: bytes) -> bytes:
    """The content of a W&B file: a LevelDB log, whose blocks of 32 KiB may cut a name in two by a header of 7 bytes."""
    block = 2**15
    return b"".join(log[start + (7 if start else 0) : start + block] for start in range(0, len(log), block))


@pytest.mark.slow
def test_wandb_offline(photo_folder: Path, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    trackers.offline_by_default()
    logger = WandbLogger(project="flowers", save_dir=str(tmp_path))
    try:
        run = fit(photo_folder, **SMALL, logger=logger, out=tmp_path)
        assert logger.experiment.config["model/backbone"] == "resnet18"
        assert logger.experiment.summary["val/acc"] == run.metrics["val/acc"]
    finally:
        wandb.teardown()  # ends its process, which may write the file's end after `finish` has returned
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = chunks(record.read_bytes())
    assert [name for name in KEPT if name.encode() not in content] == []
