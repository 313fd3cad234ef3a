"""Options of fit: configs, names of runs, small backbones, broken images."""

from pathlib import Path

import pytest
import yaml

from tests.cli.commands.test_fit import COLOURS, LOGGED, SMALL, metrics_of, printed
from tests.running import transferkit, write_photos
from tests.tiny import VIT, options


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_explicit_values_win_over_configs(empty: Path) -> None:
    Path("a.yaml").write_text("model: {lr_head: 0.25, dropout: 0.5}\n")
    Path("b.yaml").write_text("model: {dropout: 0.125}\nname: bee\n")
    done = transferkit("fit", "--model.lr_head", "0.75", "--config", "a.yaml", "-c", "b", "--print_config")
    config = yaml.safe_load(done.out)
    assert (config["model"]["lr_head"], config["model"]["dropout"], config["name"]) == (0.75, 0.125, "bee")
    assert {path.name for path in empty.iterdir()} == {"a.yaml", "b.yaml"}


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_options_are_explained_without_a_run(empty: Path, verb: str) -> None:
    assert "--data.root" in transferkit(verb, "--help").out
    assert yaml.safe_load(transferkit(verb, "--print_config").out)["model"]["backbone"] == "resnet18"


@pytest.mark.slow
def test_names_of_runs(empty: Path) -> None:
    write_photos(empty / "photos", {name: (40 * i, 99, 99) for i, name in enumerate("abcdef")}, {"train": 2, "val": 1})
    Path("mine.yaml").write_text("trainer: {max_epochs: 1, default_root_dir: out}\n")
    for number in range(2):
        done = transferkit("fit", "--config", "mine.yaml", "--data.root", "photos", *SMALL)
        assert done.out.splitlines()[-1] == f"run out/runs/mine/{number}"
    done = transferkit("test", "--config", "mine")
    assert done.status == 0 and done.out.splitlines()[-1] == "run out/runs/mine/1", done.err
    assert "val/acc_top5" in metrics_of(empty / "out/runs/mine/1")  # more than five classes


def test_small_vit(empty: Path) -> None:
    write_photos(empty / "photos", COLOURS, {"train": 4, "val": 2})
    model = options("model", {**VIT, "regime": "full", "layer_decay": 0.5})
    done = transferkit("fit", "--data.root", "photos", *model, "--data.num_workers", "0", "--trainer.max_epochs", "1")
    assert done.status == 0 and set(printed(done)) == LOGGED - {"head/C"} | {"lr/backbone"}, done.err


def test_broken_images_can_be_skipped(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photos(empty / "photos", COLOURS, {"train": 3, "val": 2})
    (empty / "photos/train/limes/1.png").write_bytes(b"\x89PNG")
    skip = ["--data.on_error", "skip", "--trainer.max_epochs", "1"]
    done = transferkit("fit", "--data.root", "photos", *SMALL, *skip)
    assert done.status == 0, done.err
    assert "skipped 1 unreadable images of train and val: 'train/limes/1.png'" in caplog.text
    assert "8 train, 6 val images" in done.err


def test_debug_shows_where(empty: Path) -> None:
    done = transferkit("fit", "--data.root", "nope", *SMALL, "--debug")
    assert done.status == 2 and done.err.startswith("Traceback") and "open_images" in done.err
