"""Checkpoint files and their content; test_run_record.py and tests/cli/commands/test_resume.py resume from them."""

from collections import OrderedDict, deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from tests.tiny import VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.training.checkpoints import (
    AtomicCheckpointIO,
    check_resumable,
    link,
    say_left_out,
    snapshot,
)
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

OWN = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}


def interrupted(**changes: Any) -> dict[str, Any]:
    """A checkpoint of a fit on the classes x and y."""
    state = {f"backbone.{name}": value.clone() for name, value in OWN.items()}
    return {"state_dict": state, "transferkit": {"class_names": ["x", "y"], "complete": True}, **changes}


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files = tmp_path / "x.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"a": OWN["a"]}, path)
    assert torch.equal(files.load_checkpoint(path)["a"], OWN["a"])

    def broken(*arguments: Any) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(UserError, match=r"cannot write .*x.ckpt completely; free some disk space"):
        files.save_checkpoint({"a": OWN["b"]}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]
    assert torch.equal(files.load_checkpoint(path)["a"], OWN["a"])


def test_a_link_shares_the_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    first.write_text("one")
    second.write_text("two")
    assert link(first, second) and first.samefile(second) and second.read_text() == "one"
    assert not link(tmp_path / "gone.ckpt", second) and second.read_text() == "one"


def test_a_snapshot_does_not_change_with_the_training() -> None:
    learning, frozen = torch.zeros(2), torch.ones(2)
    content = {"state": OrderedDict(w=learning, f=frozen), "steps": [(learning, 3)], "name": "x"}
    copied = snapshot(content, {frozen.data_ptr()})
    learning.add_(1)
    assert copied["state"]["w"].tolist() == copied["steps"][0][0].tolist() == [0, 0]
    assert copied["state"]["f"].data_ptr() == frozen.data_ptr()
    assert type(copied["state"]) is OrderedDict and copied["steps"][0][1] == 3 and copied["name"] == "x"


def test_what_can_be_resumed() -> None:
    check_resumable(interrupted(), ["x", "y"], OWN, {"a", "b"})
    state = interrupted()["state_dict"]
    learned = {**state, "backbone.b": torch.tensor([9.0])}
    check_resumable(interrupted(state_dict=learned), ["x", "y"], OWN, {"a"})  # b learns
    averaged = interrupted(state_dict=learned, current_model_state=state)
    check_resumable(averaged, ["x", "y"], OWN, {"a", "b"})
    half = {name: value.bfloat16() for name, value in state.items()}
    check_resumable(interrupted(state_dict=half), ["x", "y"], OWN, {"a", "b"})


@pytest.mark.parametrize(
    ("changes", "frozen", "message"),
    [
        (
            {"transferkit": {"class_names": ["x", "z"], "complete": True}},
            set(),
            "classes x, z, the data has x, y; start",
        ),
        ({"transferkit": {"class_names": ["x", "y"], "complete": False}}, set(), "without the frozen weights"),
        ({"state_dict": {"backbone.a": OWN["a"] + 1}}, {"a"}, "give the same `backbone`, `weights` and `seed`"),
        ({"state_dict": {}}, {"a"}, "weights are not those that the interrupted fit started from"),
    ],
)
def test_what_cannot_be_resumed(changes: dict[str, Any], frozen: set[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_resumable(interrupted(**changes), ["x", "y"], OWN, frozen)


class Remembers(Callback):
    """A callback with one state that a checkpoint can hold, and one that it cannot."""

    def __init__(self, state: dict[str, Any], qualifier: str) -> None:
        self.state, self.qualifier, self.loaded = state, qualifier, {}

    @property
    def state_key(self) -> str:
        return f"Remembers {self.qualifier}"

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict


class Own(TransferModule):
    """A subclass with hyperparameters of its own."""

    def __init__(self, criterion: Any = None, sizes: Any = (), **options: Any) -> None:
        super().__init__(**options)


class Data(ImageDataModule):
    """Data with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": frozenset(["x"]), "count": np.int64(3)}


@pytest.mark.parametrize("own_files", [True, False], ids=["the run's trainer", "a plain trainer"])
def test_what_others_keep_never_makes_a_checkpoint_useless(
    own_files: bool, tmp_path: Path, photo_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    say_left_out.cache_clear()
    data = Data(str(photo_folder), batch_size=4, num_workers=0)
    callbacks = [
        Remembers({"a": np.float64(0.5), "b": Path("x"), "c": [torch.ones(2)]}, "good"),
        Remembers({"a": np.arange(3)}, "array"),
        Remembers({"a": {"b": [deque([1])]}}, "deque"),
        ModelCheckpoint(tmp_path / "own", every_n_train_steps=1, save_top_k=-1),
    ]
    given: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    make = (
        partial(make_trainer, tmp_path / "run")
        if own_files
        else partial(Trainer, logger=False, default_root_dir=tmp_path / "plain")
    )
    seed_everything(0)
    module = Own(criterion=nn.MSELoss(), sizes=np.arange(2), **VIT)
    make(callbacks=callbacks, **given).fit(module, datamodule=data)
    for what in (
        "Remembers array of callbacks",
        "Remembers deque of callbacks",
        "seen of Data",
        "criterion of hyper_par",
    ):
        assert sum(f"checkpoints are written without {what}" in line for line in caplog.messages) == 1, what
    files = sorted(tmp_path.rglob("*.ckpt"))
    assert len(files) == (3 if own_files else 1)
    for file in files:
        content = torch.load(file, weights_only=True)
        assert content["Data"] == {"count": 3} and content["hyper_parameters"]["sizes"] == [0, 1]
        assert "criterion" not in content["hyper_parameters"] and Extractor.from_pretrained(file).head is not None
    seed_everything(0)
    again = [Remembers({}, "good"), Remembers({}, "array")]
    make(callbacks=again, **{**given, "max_epochs": 2}).fit(Own(**VIT), datamodule=data, ckpt_path=files[-1])
    assert again[0].loaded["a"] == 0.5 and again[0].loaded["b"] == "x" and not again[1].loaded
