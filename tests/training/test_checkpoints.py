"""Checkpoint files and their content; test_run_record.py and tests/cli/commands/test_resume.py resume from them."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from transferkit.errors import UserError
from transferkit.training.checkpoints import AtomicCheckpointIO, check_resumable, is_within_epoch, link, snapshot

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


@pytest.mark.parametrize(("ready", "processed", "within"), [(0, 0, False), (3, 3, False), (3, 2, True)])
def test_within_an_epoch(ready: int, processed: int, within: bool) -> None:
    progress = {"current": {"ready": ready, "processed": processed}}
    assert is_within_epoch({"loops": {"fit_loop": {"epoch_progress": progress}}}) is within


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
