"""Which option a misspelt one stands for."""

import pytest

from tests.running import refused, transferkit
from transferkit.cli.fit_help import known_options
from transferkit.cli.suggestions import ALIASES, fold, nearest

MEANT = {
    "trainer.epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "num-epochs": "trainer.max_epochs",
    "model.lr": "model.lr_head",
    "lr": "model.lr_head",
    "trainer.lr": "model.lr_head",
    "model.learning_rate": "model.lr_head",
    "learning-rate": "model.lr_head",
    "data.batchsize": "data.batch_size",
    "batch_size": "data.batch_size",
    "batch-size": "data.batch_size",
    "model.batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "data.workers": "data.num_workers",
    "data.dir": "data.root",
    "data_dir": "data.root",
    "data.rot": "data.root",
    "model.arch": "model.backbone",
    "model.backbon": "model.backbone",
    "modl.weights": "model.weights",
    "model.pretrained": "model.weights",
    "model.freeze": "model.regime",
    "image_size": "model.preprocessing",
    "trainer.gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "amp": "trainer.precision",
    "wd": "model.weight_decay",
    "seed": "seed_everything",
    "output_dir": "trainer.default_root_dir",
    "checkpoint": "ckpt_path",
    "resume": "ckpt_path",
    "topk": "top_k",
    "trainer.max_epoch": "trainer.max_epochs",
    "Model.LR_Head": "model.lr_head",
    "val_split": "data.val_fraction",
}


@pytest.fixture(scope="module")
def known() -> list[str]:
    return known_options("predict")


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant(name: str, known: list[str]) -> None:
    assert nearest(name, known) == MEANT[name]


@pytest.mark.parametrize("name", ["zzz", "data.shuffle", "model.zzzz", "trainer.xq"])
def test_a_section_alone_is_no_likeness(name: str, known: list[str]) -> None:
    assert nearest(name, known) is None


def test_the_table_names_what_there_is(known: list[str]) -> None:
    """Each option is one of fit's or of the other verbs', and none is hidden by another of the same name."""
    ends = {fold(option.split(".")[-1]) for option in known}
    for ours, theirs in ALIASES.items():
        assert fold(ours) in ends or ours in ("extractor", "extractors", "out", "seed", "k"), ours
        assert all(fold(name) == name for name in theirs.split())
        assert nearest(theirs.split()[0], [ours, "other"]) == ours


def test_other_verbs_suggest_their_own() -> None:
    assert nearest("bs", ["images", "batch_size", "out"]) == "batch_size"
    assert nearest("output", ["images", "batch_size", "out"]) == "out"
    assert nearest("epochs", ["images", "batch_size", "out"]) is None


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["photos", "--trainer.epochs", "3"], "unknown option --trainer.epochs; did you mean --trainer.max_epochs\\?"),
        (["photos", "--model.lr=0.1"], "unknown option --model.lr=0.1; did you mean --model.lr_head\\?"),
        (["photos", "--epochs", "3"], "unknown option --epochs; did you mean --trainer.max_epochs\\?"),
        (["photos", "--model", "resnet18"], "--model 'resnet18' is not a config file; .*: --model.backbone"),
        (["--data", "photos"], "--data 'photos' is not a config file; .*: --data.root"),
    ],
)
def test_the_line_that_fit_prints(arguments: list[str], pattern: str) -> None:
    assert refused(transferkit("fit", *arguments), pattern)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["embed", "d", "--model", "x"], "extractor"),
        (["embed", "d", "--device", "cpu"], "trainer.accelerator"),
        (["embed", "d", "--trainer.gpus", "1"], "trainer.devices"),
        (["embed", "d", "--output", "x"], "out"),
        (["probe", "d", "--backbone", "x"], "extractor"),
        (["probe", "d", "--device", "cpu"], "accelerator"),
        (["rank", "d", "--models", "a,b"], "extractors"),
        (["benchmark", "--model", "a"], "extractors"),
        (["search", "i", "q.jpg", "--topk", "3"], "k"),
    ],
)
def test_the_line_that_other_verbs_print(arguments: list[str], meant: str) -> None:
    assert refused(transferkit(*arguments), rf"unknown option {arguments[-2]}; did you mean --{meant}\?")
