"""Folds of fit: each image is val once, groups together; the spread is NumPy's; what was killed continues."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.running import refused, transferkit, write_photos
from tests.tiny import VIT, options
from transferkit.cli.fit_folds import print_spread
from transferkit.training.module import TransferModule

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
SMALL = [*options("model", {**VIT, "regime": "full"}), "--data.num_workers", "0", "--trainer.max_epochs", "2"]
FIT = ["fit", "m.csv", *SMALL, "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--seed_everything", "7"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a manifest: eight images of each class, in pairs."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", COLOURS, {"train": 8})
    rows = [
        f"photos/train/{label}/{n}.{'png' if n % 2 else 'jpg'},{label},{label}-{n // 2}"
        for label in COLOURS
        for n in range(8)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,group", *rows]))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with chdir(tmp_path):
        yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


def metrics(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in values.items() if name != "epoch_time"}


@pytest.mark.slow
def test_folds_are_fitted_and_what_was_killed_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*FIT, "--data.folds", "3"]
    whole = transferkit(*command, "--json")
    assert whole.status == 0, whole.err
    found = json.loads(whole.out)
    parent = Path(found["run"])
    assert parent == Path("runs/fit-folds-0") and json.loads((parent / "folds.json").read_text())["folds"] == 3
    held: list[str] = []
    for fold in range(3):
        splits = pq.read_table(parent / str(fold) / "splits.parquet").to_pydict()
        val = [path for path, split in zip(splits["path"], splits["split"], strict=True) if split == "val"]
        pairs = {(Path(path).parent, int(Path(path).stem) // 2) for path in val}
        assert len(val) == 2 * len(pairs)  # whole groups
        held += val
    assert sorted(held) == sorted(row.split(",")[0] for row in Path("m.csv").read_text().split("\n")[1:])
    for name, of in found["metrics"].items():
        values = [json.loads((parent / str(fold) / "metrics.json").read_text())[name] for fold in range(3)]
        assert of["folds"] == values
        np.testing.assert_allclose([of["mean"], of["std"]], [np.mean(values), np.std(values, ddof=1)], rtol=1e-9)

    steps = iter(range(1000))
    step = TransferModule.training_step

    def stopping(self: TransferModule, *args: int) -> object:
        if next(steps) == 9:  # 3 + 3 steps of fold 0, 3 of fold 1's first epoch
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TransferModule, "training_step", stopping)
        assert transferkit(*command).status == 130
    other = Path("runs/fit-folds-1")
    assert (other / "0/metrics.json").is_file() and not (other / "1/metrics.json").exists()
    before = (other / "0/checkpoints/last.ckpt").stat().st_mtime_ns
    again = transferkit(*command)
    assert again.status == 0 and "fold 0 of 3: done before" in again.err, again.err
    assert (other / "0/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert sorted(path.name for path in Path("runs").iterdir()) == ["fit-folds-0", "fit-folds-1"]
    assert sorted(path.name for path in other.iterdir()) == ["0", "1", "2", "folds.json"]
    for fold in range(3):
        assert metrics(other / str(fold)) == metrics(parent / str(fold))
    tested = transferkit("test", "--ckpt_path", str(other / "1/checkpoints/best.ckpt"), "--data.num_workers", "0")
    assert tested.status == 0, tested.err


BAD = {
    "--data.folds 1": "--data.folds is 1; give 2 or more",
    "--data.folds few": "--data.folds is few; give 2 or more",
    "--data.folds 9": "--data.folds is 9, but m.csv has 8 groups to hold out .*; give fewer folds",
    "--data.folds 3 --data.fold 3": "--data.fold is 3; give a number from 0 to 2",
    "--data.fold 1": "--data.folds is None; give 2 or more",
    "--data.folds 3 --data.splits s.parquet": "--data.folds 3 draws splits, but --data.splits s.parquet gives some",
    "--data.folds 3 --trainer.devices 2": "fits in one process; fit each fold by itself, with --data.fold 0",
    "--data.folds 3 --ckpt_path last": "start its command again without it",
    "--data.folds 3 --name a/b": "cannot name a folder",
    "--data.folds 3 --trainer.fast_dev_run true": "keeps nothing to compare",
}


@pytest.mark.parametrize("given", BAD)
def test_bad_folds_get_one_line_and_leave_nothing(given: str) -> None:
    assert refused(transferkit(*FIT, *given.split()), BAD[given])
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_the_table_has_what_is_worth_comparing(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("val/acc", "val/loss", "val/f1_macro", "train/loss", "head/C", "lr/head", "epoch_time", "stages")
    print_spread({name: {"mean": 0.5, "std": 0.1, "folds": [0.4, 0.6]} for name in names}, "runs/x: 2 folds")
    out = capsys.readouterr().out
    assert [name in out for name in names] == [True] * 4 + [False] * 4
