import json
import os
from pathlib import Path

import pytest

from transferkit.errors import UserError
from transferkit.training.run_directory import (
    find_checkpoint,
    measured_on_test,
    new_run,
    newest_run,
    read_metrics,
    remove_run,
    within_run,
    write_metrics,
)


def finished(root: Path, name: str, when: int) -> Path:
    """A run with checkpoints, written at a given time."""
    run = new_run(root, name)
    (run / "checkpoints").mkdir()
    for file in (run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt", run / "config.yaml"):
        file.touch()
    os.utime(run / "checkpoints", ns=(when, when))
    return run


def test_runs_are_numbered_by_name(tmp_path: Path) -> None:
    assert new_run(tmp_path, "a") == tmp_path / "runs/a/0"
    assert new_run(tmp_path, "a") == tmp_path / "runs/a/1"
    assert new_run(tmp_path, "b") == tmp_path / "runs/b/0"
    (tmp_path / "runs/a/0").rmdir()
    (tmp_path / "runs/a/notes").mkdir()
    assert new_run(tmp_path, "a") == tmp_path / "runs/a/2"  # a number is never used again


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the run directory .*`default_root_dir=\"DIR\"`"):
        new_run(tmp_path / "file", "a")


@pytest.mark.parametrize("name", ["", "a/b", "../a", "..", "a\nb", "\x1b[31m", "\udc80", "a" * 101, "名" * 86])
def test_names_that_are_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="`name`"):
        new_run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_newest_is_by_time_and_needs_a_checkpoint(tmp_path: Path) -> None:
    old, new = finished(tmp_path, "a", 1), finished(tmp_path, "b", 2)
    new_run(tmp_path, "b")
    assert newest_run(tmp_path, None) == new
    assert newest_run(tmp_path, "a") == old
    with pytest.raises(UserError, match="no run with a checkpoint"):
        newest_run(tmp_path, "c")


def test_best_last_and_file(tmp_path: Path) -> None:
    run = finished(tmp_path, "a", 1)
    last = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(tmp_path, None, "best") == (run, run / "checkpoints" / "best.ckpt")
    assert find_checkpoint(tmp_path, None, "last") == find_checkpoint(Path(), None, str(last)) == (run, last)
    lone = tmp_path / "lone.ckpt"
    lone.touch()
    assert find_checkpoint(tmp_path, None, str(lone)) == (None, lone)
    with pytest.raises(UserError, match=r"gone.ckpt does not exist; give best, last or an existing file"):
        find_checkpoint(tmp_path, None, "gone.ckpt")


def test_figures_of_the_tested_checkpoint(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}
    written = {"test/acc": 0.25, "test/epoch": 7, "val/acc": 0.75, "val/epoch": 9}
    write_metrics(tmp_path, written)
    assert json.loads((tmp_path / "metrics.json").read_text()) == read_metrics(tmp_path) == written
    assert measured_on_test(tmp_path, 7) == {"test/acc": 0.25, "test/epoch": 7} and measured_on_test(tmp_path, 9) == {}
    (tmp_path / "metrics.json").write_text("{")
    assert read_metrics(tmp_path) == {}


def test_removing_a_run_leaves_others(tmp_path: Path) -> None:
    first, second = new_run(tmp_path, "a"), new_run(tmp_path, "a")
    remove_run(first)
    assert not first.exists() and second.is_dir()
    remove_run(second)
    assert list(tmp_path.iterdir()) == []


def test_a_run_or_a_folder_of_runs_in_place_of_a_checkpoint(tmp_path: Path) -> None:
    first, second = finished(tmp_path, "ants", 1), finished(tmp_path, "ants", 2)
    assert within_run(first) == first / "checkpoints/best.ckpt"
    assert within_run(first, resumes=True) == first / "checkpoints/last.ckpt"
    (second / "checkpoints/best.ckpt").unlink()
    assert within_run(second) == second / "checkpoints/last.ckpt"
    for other in (tmp_path, first / "checkpoints", first / "config.yaml"):
        assert within_run(other) == other
    with pytest.raises(UserError) as caught:
        within_run(first.parent)
    said = f'{first.parent} holds runs, not a checkpoint; give the newest, {second}, or `name="ants"`'
    assert str(caught.value) == said
