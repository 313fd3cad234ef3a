"""``fit`` from Python, and the run that it returns: the numbers of the verb, of scikit-learn and of plain PyTorch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import confusion_matrix

from tests.running import transferkit
from tests.tiny import RESNET, VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.errors import UserError
from transferkit.training.fitting import fit
from transferkit.training.run import Run

SMALL: dict[str, Any] = {**RESNET, "max_epochs": 2, "accelerator": "cpu", "num_workers": 0}
COLORS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}


def pictures(count: int) -> tuple[list[Any], list[str]]:
    """Images of two classes, in three forms by turns."""
    noise = np.random.default_rng(0)
    labels = [list(COLORS)[row % 2] for row in range(count)]
    arrays = [np.clip(noise.normal(COLORS[name], 25, (32, 40, 3)), 0, 255).astype(np.uint8) for name in labels]
    forms = [lambda a: a, Image.fromarray, lambda a: torch.from_numpy(a).permute(2, 0, 1)]
    return [forms[row % 3](array) for row, array in enumerate(arrays)], labels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tested run on images in memory."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(place / "cache"))
        done = fit(*pictures(30), **SMALL, out=place, test_fraction=0.3)
        done.test()
    return done


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WANDB_MODE", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone after it
        monkeypatch.delenv(name)


@pytest.mark.parametrize("of_numpy", [np.float32, np.float64, np.int64])
def test_options_may_be_of_numpy_and_paths(of_numpy: Any, tmp_path: Path) -> None:
    whole = {"batch_size": 8, "max_epochs": 1, "split_seed": 0, "warmup_epochs": 1, "seed": 1}
    shares = {"lr_head": 0.5, "val_fraction": 0.5, "momentum": 0.5, "dropout": 0.5, "gradient_clip_val": 0.5}
    given = {name: of_numpy(value) for name, value in (whole if of_numpy is np.int64 else shares).items()}
    sizes = {"preprocessing": {"image_size": np.int64(32)}} if of_numpy is np.int64 else {"image_root": None}
    run = fit(*pictures(12), **{**SMALL, **given, **sizes}, l2_normalize=np.bool_(True), out=tmp_path, report=False)
    assert run.predict(pictures(1)[0][0]).label in COLORS  # the checkpoint can be read
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    saved = config["model"] | config["data"] | config["trainer"] | {"seed": config["seed_everything"]}
    assert {name: saved[name] for name in given} == {name: value.item() for name, value in given.items()}


def test_a_path_may_be_given_as_one(tmp_path: Path, photo_folder: Path) -> None:
    given: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "out": tmp_path, "report": False}
    first = fit(photo_folder, **VIT, **given)
    run = fit(photo_folder, backbone=first.checkpoint, **given)
    assert Run(run.path).data.root == str(photo_folder)


def test_a_run_has_its_files_and_metrics(run: Run) -> None:
    assert run.metrics["val/acc"] == run.metrics["test/acc"] == 1.0 and run.class_names == list(COLORS)
    names = {path.name for path in run.path.iterdir()}
    assert names >= {
        "config.yaml",
        "splits.parquet",
        "metrics.csv",
        "metrics.json",
        "report.html",
        "predictions.parquet",
    }
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "accuracy on test" in page and "nothing was tested yet" not in page, "written again by test()"
    assert repr(run) == f"Run({str(run.path)!r}, test/acc 1.0000, val/acc 1.0000)"
    assert Run(run.path).metrics == run.metrics


def test_predict_takes_one_image_or_several(run: Run) -> None:
    images, labels = pictures(6)
    found = run.predict(images)
    assert [prediction.label for prediction in found] == labels
    one = run.predict(images[0])
    assert one == run.predict([images[0]])[0] and one.label == "apples"
    logits = run.extractor.classify(run.extractor.embed(images))
    temperature = json.loads((run.path / "calibration.json").read_text())["temperature"]
    shares = torch.nn.functional.softmax(logits.double() / temperature, 1)
    for prediction, row in zip(found, shares.tolist(), strict=True):
        assert list(prediction.probabilities) == run.class_names
        assert list(prediction.probabilities.values()) == pytest.approx(row)
        assert prediction.probability == max(prediction.probabilities.values())


def test_predict_takes_a_folder_or_a_manifest(run: Run, tmp_path: Path) -> None:
    names = ["a/2.png", "b.png", "a/1.png"]
    for name, color in zip(names, ["limes", "apples", "apples"], strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), COLORS[color]).save(tmp_path / name)
    (tmp_path / "list.csv").write_text("path\na/2.png\nb.png\n")
    found = run.predict(tmp_path / "a")
    assert [(one.path, one.label) for one in found] == [("1.png", "apples"), ("2.png", "limes")]
    assert [one.probability for one in found] == pytest.approx(
        [run.predict(tmp_path / "a" / name).probability for name in ("1.png", "2.png")], abs=1e-5
    )
    assert [(one.path, one.label) for one in run.predict(str(tmp_path / "list.csv"))] == [
        ("a/2.png", "limes"),
        ("b.png", "apples"),
    ]
    (tmp_path / "a" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png"):
        run.predict(tmp_path / "a")


def test_predict_imports_nothing_that_trains_draws_or_reports(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(pictures(1)[0][0]).save(image)
    unwanted = {"lightning", "torchmetrics", "matplotlib", "transformers", "sklearn", "pandas", "jinja2"}
    code = f"""if True:
        import sys
        from transferkit import Run
        print(Run({str(run.path)!r}).predict({str(image)!r}).label)
        print({unwanted!r} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    label, imported = done.stdout.splitlines()
    assert label in COLORS and imported == "set()"


def test_what_is_shown_of_an_object_is_short(run: Run) -> None:
    image = pictures(1)[0][0]
    assert repr(run.predict(image)).startswith("Prediction(label='apples', probability=0.")
    assert "None" not in repr(run.predict(image))
    assert repr(run.extractor) == "Extractor('resnet18', 32 x 32, avg, 512-d, 2 classes)"
    assert repr(run.extractor.calibration).startswith("Calibration(2 classes, temperature ")
    assert repr(run.embeddings()) == f"Embeddings({len(run.embeddings())} x 512, 2 labels)"


def test_test_takes_no_images(run: Run) -> None:
    with pytest.raises(UserError, match=r"^progress is of type list; give true or false$"):
        run.test(pictures(2)[0])  # type: ignore[arg-type]


def test_plots_are_figures_of_the_numbers(run: Run, tmp_path: Path) -> None:
    history = run.plot_history()
    lines = {line.get_label(): line.get_ydata() for axes in history.axes for line in axes.lines}
    assert lines["val/acc"][-1] == 1.0 and "train/loss" in lines
    confusion, points = run.plot_confusion(), run.plot_embeddings()
    rows = Run(run.path).embeddings()
    counts = confusion_matrix(rows.labels, rows.labels)
    shown = [text.get_text() for text in confusion.axes[0].texts]
    assert sorted(shown) == sorted(str(count) if count else "" for count in counts.flatten()) or len(shown) == 4
    for figure in (history, confusion, points):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / "figure.png")
    assert run.report(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!")


@pytest.mark.slow
def test_it_is_the_fit_of_the_verb(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model.backbone", "resnet18", "--model.weights", "none", "--data.num_workers", "0"]
    options += ["--model.preprocessing", '{"resize": [32, 32], "crop": [32, 32]}', "--trainer.max_epochs", "2"]
    transferkit("fit", str(photo_folder), *options, "--trainer.accelerator", "cpu", "--name", "verb")
    run = fit(photo_folder, **SMALL, name="python")
    assert run.path == Path("runs/python/0")
    verb = Run("runs/verb/0")
    for name in ("val/acc", "val/loss", "train/loss"):
        assert run.metrics[name] == verb.metrics[name]
    mine, theirs = (yaml.safe_load((each.path / "config.yaml").read_text()) for each in (run, verb))
    assert (mine["model"], mine["data"]) == (theirs["model"], theirs["data"])
    transferkit("test", "--ckpt_path", "runs/python/0/checkpoints/best.ckpt", "--trainer.accelerator", "cpu")
    told = Run("runs/python/0").metrics
    assert told["test/loss"] == pytest.approx(Run("runs/python/0").test()["test/loss"])
    assert Embeddings.load("runs/python/0/embeddings.parquet").paths == run.embeddings().paths


class Count(pl.Callback):
    """One's own callback."""

    epochs = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1


@pytest.mark.slow
def test_own_callbacks_loggers_and_data(photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    count = Count()
    data = ImageDataModule(str(photo_folder), num_workers=0)
    options = {name: value for name, value in SMALL.items() if name != "num_workers"}
    options |= {"logger": CSVLogger(tmp_path / "logs"), "out": tmp_path, "report": False}
    run = fit(data, **options, callbacks=[count], progress=True)
    assert "epoch 2/2  train/loss" in capfd.readouterr().err, "asked for"
    assert count.epochs == 2 and list((tmp_path / "logs").rglob("metrics.csv")) and list(run.path.glob("events.*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bathc_size": 3}, "fit has no argument 'bathc_size'; did you mean 'batch_size'?"),
        ({"default_root_dir": "runs"}, "fit has no argument 'default_root_dir'"),
        ({"enable_progress_bar": True}, "fit has no argument 'enable_progress_bar'"),
        ({"labels": ["a"]}, "labels: 1 for 30 images"),
        ({"regime": "partial", "unfreeze_last": 9}, "`unfreeze_last` is 9"),
        ({"devices": 2}, "`devices` is 2, and fit runs in one process"),
        ({"max_epochs": "x"}, "^`max_epochs` is 'x'; give a whole number$"),
        ({"max_epochs": 1.5}, "^`max_epochs` is 1.5; give a whole number$"),
        ({"max_epochs": -5}, "^`trainer`: `max_epochs` must be a non-negative integer or -1"),
        ({"limit_train_batches": -1}, "^`trainer`: .* limit_train_batches, it has to be in"),
        ({"gradient_clip_val": "x"}, "^`gradient_clip_val` is 'x'; give a number$"),
        ({"check_val_every_n_epoch": 0}, "^`check_val_every_n_epoch` is 0; give 1 or more$"),
        ({"callbacks": "x"}, "^`callbacks` has 'x'; give instances of"),
        ({"seed": -1}, "^`seed` is -1; give a whole number from 0 to 4294967295$"),
        ({"seed": "x"}, "^`seed` is 'x'; give a whole number from 0"),
        ({"accelerator": "x"}, "^`trainer`: .*`accelerator='x'`"),
        ({"precision": "x"}, "^`trainer`: Precision 'x' is invalid"),
        ({"profiler": "x"}, "^`trainer`: .* `profiler`"),
        ({"batch_size": "x"}, "^`batch_size` is 'x'; give a whole number$"),
        ({"lr_head": "x"}, "^`lr_head` is 'x'; give 'auto' or a number$"),
        ({"regime": "frozzen"}, "^`regime` is 'frozzen'; give 'frozen', 'partial', 'full', .*, 'lora'$"),
        ({"preprocessing": 64}, "^`preprocessing` is 64; give a dict$"),
        ({"logger": "x"}, "^`logger` is 'x'; give an instance of lightning.pytorch.loggers.Logger"),
        ({"logger": [True, 1]}, "^`logger` is 1; give an instance of"),
        ({"progress": "yes"}, "^progress is of type str; give true or false$"),
        ({"labels": None}, "^no labels in 'images in memory'; give labels, one per image$"),
        ({"labels": [["a"]] * 30}, r"^labels: item 0 is \['a'\]; give one class per image, or `multilabel=True`$"),
        ({"name": "a/b"}, "`name` 'a/b' cannot name a folder"),
        ({"images": "nowhere"}, "no such folder or file: 'nowhere'"),
        ({"images": ImageDataModule("x"), "labels": ["a"]}, "labels is given beside an ImageDataModule"),
        ({"images": ImageDataModule("x"), "labels": None}, "`num_workers` is given beside an ImageDataModule"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], told: str, tmp_path: Path) -> None:
    images, labels = pictures(30)
    with pytest.raises(UserError, match=told):
        fit(**{"images": images, "labels": labels, **SMALL, "out": tmp_path, **arguments})
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_device_that_is_not_there_is_told(accelerator: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`accelerator` names a device that this machine does not have; leave it out$"):
        fit(*pictures(30), **{**SMALL, "accelerator": accelerator}, out=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_is_not_a_run_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match="holds no checkpoint; give the directory of a run"):
        Run(tmp_path)
    with pytest.raises(UserError, match=r"does not say where its images are; give Run\(path, data=ImageDataModule"):
        _ = Run(run.path).data


SILENT = """
import numpy as np, sys
sys.argv = None  # nothing needs it
from transferkit import Extractor, fit
images = [np.full((32, 32, 3), 50 * (row % 2), np.uint8) + np.uint8(row) for row in range(12)]
run = fit(images, ["a", "b"] * 6, backbone="resnet18", weights="none", preprocessing={"image_size": 32},
          max_epochs=1, accelerator="cpu", batch_size=4)
run.test(), run.predict(images[0]), run.report(), run.extractor.embed(images)
"""


@pytest.mark.slow
def test_nothing_is_printed_and_no_arguments_are_needed(tmp_path: Path) -> None:
    environment = {"PATH": "", "FORCE_COLOR": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SILENT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
