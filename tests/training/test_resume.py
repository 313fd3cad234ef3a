"""The rules of resuming, on plain dicts."""

from pathlib import Path
from typing import Any

import pytest

from transferkit.errors import UserError
from transferkit.training.resume import (
    MOVABLE,
    SPLIT_OPTIONS,
    STEPS_PER_EPOCH,
    Progress,
    check_progress,
    check_same_fit,
    data_for,
    is_within_epoch,
    progress_of,
    recorded_splits,
)

RUN = Path("runs/name/3")
SAVED: dict[str, Any] = {
    "model": {"lr_head": 0.1, "regime": "full"},
    "data": {"root": "a", "num_workers": 0, "splits": None, "batch_size": 4},
}


def content(ready: int, processed: int) -> dict[str, Any]:
    progress = {"current": {"ready": ready, "processed": processed}}
    return {"optimizer_states": [], "loops": {"fit_loop": {"epoch_progress": progress}}, "global_step": 40}


def test_the_same_fit_goes_on() -> None:
    check_same_fit(SAVED, SAVED, RUN)
    check_same_fit({"model": {}, "data": {}}, SAVED, RUN)  # of a version without these options


@pytest.mark.parametrize(("section", "field"), [(s, f) for s, fields in SAVED.items() for f in fields])
def test_only_what_may_move_may_differ(section: str, field: str) -> None:
    other = {**SAVED, section: {**SAVED[section], field: "other"}}
    if field in MOVABLE:
        check_same_fit(SAVED, other, RUN)
    else:
        with pytest.raises(UserError, match=f'`{field}=other`.*`name="name"` `ckpt_path="last"`'):
            check_same_fit(SAVED, other, RUN)


@pytest.mark.parametrize(("epochs", "refused"), [(None, 0), (-1, 0), (5, 0), (4, 0), (3, 1), (0, 1)])
@pytest.mark.parametrize(("field", "done"), [("max_epochs", 4), ("max_steps", 40)])
def test_an_end_that_has_been_passed(field: str, done: int, epochs: int | None, refused: int) -> None:
    progress = progress_of(content(4, 4), RUN)
    assert progress == Progress(4, False, 40)
    end = epochs and epochs * done // 4 if epochs != -1 else -1
    if refused:
        with pytest.raises(UserError, match=f"`{field}` is {end}, the checkpoint has completed {done}"):
            check_progress({}, {field: end}, progress)
    else:
        check_progress({}, {field: end}, progress)


@pytest.mark.parametrize("field", STEPS_PER_EPOCH)
def test_other_steps_per_epoch_within_an_epoch(field: str) -> None:
    check_progress({field: 1}, {field: 2}, progress_of(content(4, 4), RUN))
    with pytest.raises(UserError, match=f"`{field}=2` differs from the 1 of the run"):
        check_progress({field: 1}, {field: 2}, progress_of(content(4, 3), RUN))


@pytest.mark.parametrize("field", ["devices", "num_nodes"])
def test_the_same_processes_may_be_written_in_other_ways(field: str) -> None:
    """The checkpoint knows how many they were."""
    check_progress({field: "auto"}, {field: 1}, progress_of(content(4, 3), RUN))


NO_STATES = ([{}], [{"param_groups": []}], [{"param_groups": 3}], [{"param_groups": [1]}], [3])


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"optimizer_states": []},
        {"optimizer_states": [], "loops": {"fit_loop": 3}},
        *({**content(4, 4), "optimizer_states": states} for states in NO_STATES),
    ],
)
def test_weights_alone_cannot_be_resumed(broken: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="holds weights only, not the state of a fit"):
        progress_of(broken, Path("x.ckpt"))


def test_what_names_the_images_of_a_run_is_not_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {
        "image_root": "photos",
        "splits": "s.parquet",
        "exclude": "x.csv",
        "classes": ["a"],
        "sample_weights": "w.csv",
    }
    kept = {"batch_size": 8, "on_error": "skip", "multilabel": False}
    saved = {"root": "lists/a.csv", **own, **kept}
    for same in (None, "lists/a.csv", "./lists/a.csv", str(tmp_path / "lists/a.csv")):
        assert data_for(saved, same) == saved
    for other in ("photos", "photos/one.jpg", "digits"):
        assert data_for(saved, other) == {"root": "lists/a.csv", **kept}
    another = {name: value for name, value in saved.items() if name != "splits"}
    assert data_for(saved, "lists/b.csv") == another, "of images in the same folder"
    assert data_for({**saved, "image_root": None}, "lists/b.csv") == {"root": "lists/a.csv", **kept}


def test_splits_of_a_run() -> None:
    file = RUN / "splits.parquet"
    data = {"splits": None, "root": "a", **dict.fromkeys(SPLIT_OPTIONS, 1)}
    assert recorded_splits(data, data, file, "fit") == str(file)
    assert recorded_splits({**data, "root": "b"}, data, file, "fit") == str(file)  # moved
    assert recorded_splits({**data, "root": "b"}, data, file, "test") is None  # other data
    assert recorded_splits({**data, "root": "./a"}, data, file, "test") == str(file)
    assert recorded_splits(data, data, file, "predict") is None
    assert recorded_splits(data, None, None, "fit") is None
    assert recorded_splits({**data, "splits": "mine"}, data, file, "fit") == "mine"
    for field in SPLIT_OPTIONS:
        with pytest.raises(UserError, match=f"`{field}=2`: the splits are those of runs/name/3; leave it out"):
            recorded_splits({**data, field: 2}, data, file, "test")


@pytest.mark.parametrize(("ready", "processed", "within"), [(0, 0, False), (3, 3, False), (3, 2, True)])
def test_within_an_epoch(ready: int, processed: int, within: bool) -> None:
    progress = {"current": {"ready": ready, "processed": processed}}
    assert is_within_epoch({"loops": {"fit_loop": {"epoch_progress": progress}}}) is within
