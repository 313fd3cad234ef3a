"""The quickstart: it replaces only what it wrote, and ends with a table and a figure that show the gain of transfer."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.running import Done, transferkit
from transferkit.errors import UserError
from transferkit.training.demo import best, clear, margin, written
from transferkit.training.demo_backbone import BACKBONES, EVALUATION, Row, Study
from transferkit.training.symbols import SYMBOLS

PARTS = ("extractor", "pretraining", "from-scratch", "random-frozen", "transferred-frozen", "transferred-fine-tuned")


def row(approach: str, accuracy: float, std: float | None = None) -> Row:
    return Row("ViT", approach, 8, 100, 10, accuracy, std, 1.0)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_only_its_own_files_are_replaced(tmp_path: Path) -> None:
    study = Study(tmp_path)
    for name in ("table.csv", "vit-extractor", "symbols", "3", "x.tmp"):
        (tmp_path / name).mkdir()
    clear(study)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]  # a run of quickstart.yaml
    (tmp_path / "mine.jpg").touch()
    with pytest.raises(UserError, match=r"holds 'mine.jpg', which a quickstart does not write; give another `out`"):
        clear(study)
    with pytest.raises(UserError, match=r"cannot write .*; give another `out`"):
        clear(Study(tmp_path / "mine.jpg"))


def test_the_files_it_writes() -> None:
    assert {path.name for path in written(Study(Path("out")))} == {
        "table.csv", "quickstart.png", "symbols", *(f"{name}-{part}" for name in ("resnet18", "vit") for part in PARTS)
    }  # fmt: skip


def test_the_best_with_and_without_transfer() -> None:
    rows = [row("pretraining", 0.99), row("from scratch", 0.5, 0.02), row("random, frozen", 0.6, 0.03)]
    rows += [row("transferred, frozen", 0.7, 0.01), row("transferred, fine-tuned", 0.8, 0.04)]
    assert best(rows, "ViT", True).approach == "transferred, fine-tuned"
    assert best(rows, "ViT", False).approach == "random, frozen"
    assert margin(rows, "ViT") == pytest.approx((0.8 - 0.04) - (0.6 + 0.03))
    assert margin([row("from scratch", 0.5), row("transferred, frozen", 0.7)], "ViT") == pytest.approx(0.2)


def test_the_work_of_a_backbone() -> None:
    study = Study(Path(), n_per_class=2, draws=3, drawings=10, pretraining={"ViT": 4}, few_shot={"ViT": 5})
    evaluations = 1 + 3 * 4
    assert study.work("ViT") == 4 * 10 * len(SYMBOLS) + 3 * (5 + 5) * 20 + evaluations * EVALUATION


def short(out: str, seed: int) -> Done:
    return transferkit(
        "quickstart", "--out", out, "--seeds", "2", "--drawings", "4", "--resnet_epochs", "1", "--vit_epochs", "1",
        "--seed", str(seed),
    )  # fmt: skip


@pytest.mark.slow
def test_two_short_quickstarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "transferkit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    for seed, out in enumerate(("out", "other")):
        done = short(out, seed)
        assert done.status == 0, done.err
        lines = [record.getMessage() for record in caplog.records if " elapsed, " in record.getMessage()]
        for name in BACKBONES:
            assert all(any(f"{name}: step {number} of 5" in line for line in lines) for number in range(1, 6))
        assert " left, " in lines[-1]
        caplog.clear()
        assert "figure: " in done.out and "next: transferkit fit" in done.out
    assert torch.get_num_threads() == threads
    first, second = table(Path("out")), table(Path("other"))
    assert [row["approach"] for row in first] == 2 * [
        "pretraining", "from scratch", "random, frozen", "transferred, frozen", "transferred, fine-tuned"
    ]  # fmt: skip
    assert list(first[0]) == [
        "backbone", "approach", "embed_dim", "parameters", "learning", "accuracy", "std", "seconds"
    ]  # fmt: skip
    assert all(0 <= float(row["accuracy"]) <= 1 for row in first)
    assert all((row["std"] == "") == (row["approach"] == "pretraining") for row in first)
    assert [row["accuracy"] for row in first] != [row["accuracy"] for row in second]
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in written(Study(Path("out")))}
    with Image.open("out/quickstart.png") as figure:
        assert figure.format == "PNG" and np.asarray(figure).std() > 0
    assert len(list(Path("out/symbols").rglob("*.png"))) == 4 * len(SYMBOLS)
    drawings = [Path(out, "symbols/U+0041/000.png").read_bytes() for out in ("out", "other")]
    assert drawings[0] != drawings[1]


@pytest.mark.slow
def test_transfer_gains_on_both_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    done = transferkit("quickstart", "--out", str(out))
    assert done.status == 0, done.err
    rows = [
        Row(line["backbone"], line["approach"], 0, 0, 0, float(line["accuracy"]), float(line["std"] or 0), 0)
        for line in table(out)
    ]
    for backbone in BACKBONES:
        assert margin(rows, backbone) > 0, done.out
        assert f"{backbone}: transfer gained " in done.out and "gained nothing" not in done.out
