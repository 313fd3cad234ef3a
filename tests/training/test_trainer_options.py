"""What the Trainer can be given, in a table: it works, or is refused in one line that leaves no run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.running import transferkit, write_photos
from tests.tiny import RESNET, VIT, options
from transferkit.data.embeddings import Embeddings

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
DATA = ["--data.root", "photos", "--data.num_workers", "0", "--data.batch_size", "4", "--trainer.max_epochs", "2"]
FROZEN, FULL = options("model", RESNET), [*options("model", VIT), "--model.regime", "full"]
BATCHNORM = [*options("model", RESNET), "--model.regime", "full"]


def trainer(text: str) -> list[str]:
    """``name value name value``, with spaces in values written as ``_``."""
    words = text.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return [part for name, value in pairs for part in (f"--trainer.{name}", value)]


def callbacks(*names: str, **fields: str) -> list[str]:
    """Callbacks by class name, and options of the last."""
    given = [part for name in names for part in ("--trainer.callbacks+", name)]
    return [*given, *(part for name, value in fields.items() for part in (f"--trainer.callbacks.{name}", value))]


WORKS: dict[str, list[str]] = {
    "accumulate": [*FULL, *trainer("accumulate_grad_batches 2")],
    "benchmark": [*FULL, *trainer("benchmark true")],
    "bf16-mixed, clipped": [*FULL, *trainer("precision bf16-mixed gradient_clip_val 1.0")],
    "bf16-mixed, cached": [*FROZEN, *trainer("precision bf16-mixed gradient_clip_val 1.0")],
    "16-mixed, clipped by value": [*FULL, *trainer("precision 16-mixed gradient_clip_val .5"),
                                   *trainer("gradient_clip_algorithm value")],
    "bf16-true": [*FULL, *trainer("precision bf16-true")],
    "bf16-true, cached": [*FROZEN, *trainer("precision bf16-true")],
    "64-true": [*FULL, *trainer("precision 64-true")],
    "64-true, cached": [*FROZEN, *trainer("precision 64-true")],
    "16-true": [*FULL, *trainer("precision 16-true"), "--data.class_weights", "balanced"],
    "clipped": [*FULL, *trainer("gradient_clip_val 0.1")],
    "detect_anomaly": [*FULL, *trainer("detect_anomaly true")],
    "deterministic": [*FULL, *trainer("deterministic true")],
    "deterministic, warned of": [*FULL, *trainer("deterministic warn")],
    "every other epoch": [*FROZEN, *trainer("check_val_every_n_epoch 2")],
    "fast_dev_run": [*FULL, *trainer("fast_dev_run true")],
    "fast_dev_run 2": [*FROZEN, *trainer("fast_dev_run 2")],
    "a tenth of the validation": [*FULL, *trainer("limit_val_batches 0.5")],
    "a third of the cached validation": [*FROZEN, *trainer("limit_val_batches 0.34")],
    "one batch of each": [*FROZEN, *trainer("limit_train_batches 1 limit_val_batches 1")],
    "half the training": [*FULL, *trainer("limit_train_batches 0.5")],
    "no validation": [*FULL, *trainer("limit_val_batches 0")],
    "logger true": [*FROZEN, *trainer("logger true")],
    "logger false": [*FROZEN, *trainer("logger false")],
    "a CSVLogger": [*FROZEN, *trainer("logger CSVLogger logger.save_dir logs")],
    "two loggers": [*FROZEN, *trainer("logger+ CSVLogger logger.save_dir logs logger+ TensorBoardLogger "
                                      "logger.save_dir logs")],
    "max_steps": [*FULL, *trainer("max_steps 2")],
    "max_time": [*FULL, *trainer("max_time 00:00:10:00")],
    "max_time, none": [*FULL, *trainer("max_time 00:00:00:00")],
    "min_epochs": [*FULL, *trainer("min_epochs 1")],
    "profiler simple": [*FROZEN, *trainer("profiler simple")],
    "profiler advanced": [*FROZEN, *trainer("profiler advanced")],
    "reload": [*FULL, *trainer("reload_dataloaders_every_n_epochs 1")],
    "sanity check": [*FULL, *trainer("num_sanity_val_steps 1")],
    "summary": [*FROZEN, *trainer("enable_model_summary true")],
    "sync_batchnorm, one process": [*BATCHNORM, *trainer("sync_batchnorm true devices 1")],
    "validated in the midst": [*FULL, *trainer("val_check_interval 0.5")],
    "validated by the clock": [*FULL, *trainer("val_check_interval 00:00:00:01")],
    "validated every batch": [*FROZEN, *trainer("val_check_interval 1")],
    "no checkpoints": [*FROZEN, *trainer("enable_checkpointing false")],
    "log_every_n_steps": [*FROZEN, *trainer("log_every_n_steps 1")],
    "use_distributed_sampler": [*FROZEN, *trainer("use_distributed_sampler false")],
    "inference_mode": [*FULL, *trainer("inference_mode false")],
    "an AsyncCheckpointIO": [*FROZEN, *trainer("plugins AsyncCheckpointIO")],
    "one callback": [*FROZEN, *trainer("callbacks EarlyStopping callbacks.monitor val/loss")],
    "DeviceStatsMonitor": [*FROZEN, *callbacks("DeviceStatsMonitor")],
    "EMAWeightAveraging": [*BATCHNORM, *callbacks("EMAWeightAveraging")],
    "GradientAccumulationScheduler": [*FULL, *callbacks("GradientAccumulationScheduler", scheduling="{0: 2, 1: 1}")],
    "LearningRateMonitor": [*FROZEN, *callbacks("LearningRateMonitor")],
    "ModelCheckpoint": [*FROZEN, *callbacks("ModelCheckpoint", monitor="val/acc", mode="max", save_last="true")],
    "ModelCheckpoint, steps": [*FROZEN, *callbacks("ModelCheckpoint", every_n_train_steps="1", save_top_k="-1")],
    "ModelPruning": [*FULL, *callbacks("ModelPruning", pruning_fn="l1_unstructured", amount="0.1")],
    "ModelPruning, for now": [*FULL, *callbacks("ModelPruning", pruning_fn="l1_unstructured", amount="0.1",
                                                make_pruning_permanent="false")],
    "ModelSummary": [*FULL, *callbacks("ModelSummary")],
    "OnExceptionCheckpoint": [*FROZEN, *callbacks("OnExceptionCheckpoint", dirpath="out")],
    "RichProgressBar": [*FROZEN, *callbacks("RichProgressBar")],
    "StochasticWeightAveraging": [*BATCHNORM, *callbacks("StochasticWeightAveraging", swa_lrs="0.01")],
    "ThroughputMonitor": [*FROZEN, *callbacks("ThroughputMonitor", batch_size_fn="builtins.len")],
    "Timer": [*FROZEN, *callbacks("Timer", duration="00:01:00:00")],
    "TQDMProgressBar": [*FROZEN, *callbacks("TQDMProgressBar")],
    "WeightAveraging": [*FROZEN, *callbacks("WeightAveraging")],
}  # fmt: skip
REFUSED: dict[str, list[str]] = {
    "accelerator gpu": [*FROZEN, *trainer("accelerator gpu")],
    "accelerator mps": [*FROZEN, *trainer("accelerator mps")],
    "barebones": [*FROZEN, *trainer("barebones true")],
    "devices 0": [*FROZEN, *trainer("devices 0")],
    "fsdp": [*FULL, *trainer("strategy fsdp")],
    "deepspeed": [*FULL, *trainer("strategy deepspeed")],
    "ddp_spawn": [*FULL, *trainer("strategy ddp_spawn devices 2")],
    "an unknown strategy": [*FULL, *trainer("strategy fast")],
    "an unknown profiler": [*FULL, *trainer("profiler fast")],
    "transformer-engine": [*FULL, *trainer("precision transformer-engine")],
    "nf4": [*FULL, *trainer("precision bf16-true plugins BitsandbytesPrecision plugins.mode nf4")],
    "a negative clip": [*FULL, *trainer("gradient_clip_val -1")],
    "a clip that is no number": [*FULL, *trainer("gradient_clip_val .nan")],
    "machines that nobody starts": [*FROZEN, *trainer("num_nodes 2")],
    "an unknown clip": [*FULL, *trainer("gradient_clip_val 1 gradient_clip_algorithm best")],
    "a fraction above 1": [*FULL, *trainer("limit_train_batches 1.5")],
    "a fraction of nothing": [*FULL, *trainer("limit_train_batches 0.01")],
    "hardly any validation": [*FULL, *trainer("limit_val_batches 0.01")],
    "an interval above 1": [*FULL, *trainer("val_check_interval 1.5")],
    "an interval of nothing": [*FULL, *trainer("val_check_interval 0")],
    "no epochs": [*FULL, *trainer("max_epochs 0")],
    "no steps": [*FROZEN, *trainer("max_steps 0")],
    "no batches": [*FROZEN, *trainer("limit_train_batches 0")],
    "not deterministic": [*BATCHNORM, *trainer("deterministic maybe")],
    "CometLogger": [*FROZEN, *trainer("logger CometLogger")],
    "NeptuneLogger": [*FROZEN, *trainer("logger NeptuneLogger")],
    "one image per batch": [*BATCHNORM, "--data.batch_size", "1"],
    "BackboneFinetuning": [*FROZEN, *callbacks("BackboneFinetuning")],
    "BatchSizeFinder": [*FULL, *callbacks("BatchSizeFinder")],
    "LearningRateFinder": [*FULL, *callbacks("LearningRateFinder")],
    "EarlyStopping, no monitor": [*FULL, *callbacks("EarlyStopping")],
    "EarlyStopping, misspelt": [*FULL, *callbacks("EarlyStopping", monitor="val_acc")],
    "EarlyStopping, mode": [*FULL, *callbacks("EarlyStopping", monitor="val/acc", mode="up")],
    "LearningRateMonitor, no logger": [*FULL, *trainer("logger false"), *callbacks("LearningRateMonitor")],
    "ModelPruning of whole rows, vectors too": [
        *FULL,
        *callbacks(
            "ModelPruning",
            pruning_fn="ln_structured",
            amount="0.5",
            use_global_unstructured="false",
            pruning_dim="0",
            pruning_norm="2",
        ),
    ],
    "ModelCheckpoint, misspelt": [*FULL, *callbacks("ModelCheckpoint", monitor="val_acc")],
    "two progress bars": [*FULL, *callbacks("TQDMProgressBar", "RichProgressBar")],
    "a bar and none": [*FULL, *trainer("enable_progress_bar false"), *callbacks("TQDMProgressBar")],
    "SWA without a rate": [*FULL, *callbacks("StochasticWeightAveraging", swa_lrs="-1")],
    "no such callback": [*FULL, *callbacks("Nothing")],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_photos(tmp_path / "photos", COLOURS, {"train": 6, "val": 6})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("case", WORKS)
def test_what_works(case: str) -> None:
    done = transferkit("fit", *DATA, *WORKS[case])
    assert done.status == 0, done.err
    assert Path("runs").exists() is (not case.startswith("fast_dev_run"))
    for path in Path().rglob("*.ckpt"):  # whoever wrote it
        assert transferkit("validate", "--ckpt_path", str(path), "--data.root", "photos").status == 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("model", [FROZEN, FULL, BATCHNORM])
def test_precisions_from_fit_to_export(precision: str, model: list[str]) -> None:
    given = ["--trainer.precision", precision]
    for verb, arguments in (
        ("fit", [*DATA, *model, *given]),
        ("validate", []),  # the run's own precision
        ("test", given),
        ("predict", ["--data.root", "photos/val/apples", *given]),
        ("fit", ["--ckpt_path", "last", "--trainer.max_epochs", "3"]),
        ("export", ["last"]),
    ):
        done = transferkit(verb, *arguments)
        if precision == "16-true" and model is BATCHNORM and done.status:  # variances may be beyond float16
            assert verb == "fit" and "has diverged: model.layer" in done.err.splitlines()[-1], done.err
            for path in Path().rglob("*.ckpt"):  # of the epochs before
                assert transferkit("validate", "--ckpt_path", str(path)).status == 0
            return
        assert done.status == 0, f"{verb}: {done.err}"
    for name in ("embeddings", "predict/embeddings"):
        assert Embeddings.load(f"runs/fit/0/{name}.parquet").embedding.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["logger", "CometLogger"], "--trainer: CometLogger: Requirement 'comet-ml"),
        (["logger", "Nowhere"], "--trainer.logger Nowhere: no class of that name is known; give its whole import path"),
        (["logger", "[CSVLogger, TensorBoardLogger]"], "--trainer: CSVLogger: the following arguments are required: s"),
        (["callbacks", "Nothing"], "--trainer.callbacks Nothing: no class of that name is known"),
        (["callbacks", "[EarlyStopping]"], "--trainer: EarlyStopping: the following arguments are required: monitor"),
        (["callbacks+", "EarlyStopping", "callbacks.monitor", "val/acc", "callbacks.mode", "up"], "mode can be min"),
        (["callbacks+", "EarlyStopping", "callbacks.monitor", "val/acc", "callbacks.patience", "x"], "EarlyStopping: "),
        (["plugins", "Nothing"], "--trainer.plugins Nothing: no class of that name is known"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_class(given: list[str], says: str) -> None:
    pairs = zip(given[::2], given[1::2], strict=True)
    options = [part for name, value in pairs for part in (f"--trainer.{name}", value)]
    done = transferkit("fit", *DATA, *FROZEN, *options)
    assert done.status == 2 and says in done.err and "Union" not in done.err, done.err


def test_a_fit_without_a_step_says_so() -> None:
    done = transferkit("fit", *DATA, *FROZEN, *trainer("max_time 00:00:00:00"))
    assert done.status == 0 and "no step was taken, so nothing is trained" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    done = transferkit("fit", *DATA, *REFUSED[case])
    assert done.status == 2, done
    assert done.err.splitlines()[-1].startswith("transferkit: error: ") and "Traceback" not in done.err
    assert done.out == "" and not Path("runs").exists()
