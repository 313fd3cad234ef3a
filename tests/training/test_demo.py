"""The quickstart: it replaces only what it wrote, leaves the process as it was, and ends with a table."""

import csv
from pathlib import Path

import pytest
import torch

from tests.running import transferkit
from transferkit.errors import UserError
from transferkit.training import demo
from transferkit.training.demo import Row, best, clear


def row(approach: str, accuracy: float) -> Row:
    return Row("ViT", approach, 8, 100, 10, accuracy, None, 1.0)


def test_only_its_own_files_are_replaced(tmp_path: Path) -> None:
    for name in ("table.csv", "vit-extractor", "3", "x.tmp"):
        (tmp_path / name).mkdir()
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]  # a run of quickstart.yaml
    (tmp_path / "mine.jpg").touch()
    with pytest.raises(UserError, match=r"holds 'mine.jpg', which a quickstart does not write; give another `out`"):
        clear(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*; give another `out`"):
        clear(tmp_path / "mine.jpg")


def test_the_best_with_and_without_transfer() -> None:
    rows = [row("pretraining", 0.99), row("from scratch", 0.5), row("random, frozen", 0.6)]
    rows += [row("transferred, frozen", 0.7), row("transferred, fine-tuned", 0.8)]
    assert best(rows, "ViT", True).approach == "transferred, fine-tuned"
    assert best(rows, "ViT", False).approach == "random, frozen"


@pytest.mark.slow
def test_a_short_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "EPOCHS", dict.fromkeys(demo.EPOCHS, 1))
    torch.set_num_threads(2)
    done = transferkit("quickstart", "--out", "out", "--seeds", "1", "--resnet_epochs", "1", "--vit_epochs", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert done.status == 0 and threads == 2, done.err
    with Path("out/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["approach"] for row in rows] == 2 * [
        "pretraining", "from scratch", "random, frozen", "transferred, frozen", "transferred, fine-tuned"
    ]  # fmt: skip
    assert all(0 <= float(row["accuracy"]) <= 1 and row["std"] == "" for row in rows)
    assert {path.name for path in Path("out").iterdir()} == {
        "table.csv", *(f"{name}-{part}" for name in ("resnet18", "vit") for part in demo.PARTS)
    }  # fmt: skip
