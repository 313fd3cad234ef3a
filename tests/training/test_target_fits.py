"""Fits of several labels, and of a number, from Python: what they take, predict, and how they resume."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from tests.tiny import VIT, Cut
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.targets import parts_of
from transferkit.errors import UserError
from transferkit.training.fitting import fit
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

ROWS = 40
HAS = np.random.default_rng(0).random((ROWS, 3)) < 0.4
IMAGES = [np.uint8(90 + 100 * has) * np.ones((8, 8, 1), np.uint8) for has in HAS]  # (H, W, 3)
LABELS = [[name for name, own in zip("rgb", has, strict=True) if own] for has in HAS]
NUMBERS = [float(image.mean()) * 7 - 300 for image in IMAGES]
GIVEN: dict[str, dict[str, Any]] = {
    "labels": {"labels": LABELS, "multilabel": True},
    "number": {"targets": NUMBERS},
}
OPTIONS: dict[str, Any] = {"max_epochs": 4, "accelerator": "cpu", "report": False}


def test_lists_of_labels_are_learned(tmp_path: Path) -> None:
    run = fit(IMAGES, **GIVEN["labels"], **VIT, **OPTIONS, out=tmp_path)
    assert run.class_names == ["b", "g", "r"] and run.metrics["val/map"] > 0.9
    assert repr(run) == f"Run({str(run.path)!r}, val/map {run.metrics['val/map']:.4f})"
    with pytest.raises(UserError, match="predicts several labels per image, which has no confusion matrix"):
        run.plot_confusion()
    found = run.predict(IMAGES)
    right = [parts_of(one.label) == tuple(sorted(names)) for one, names in zip(found, LABELS, strict=True)]
    assert np.mean(right) > 0.9 and all(math.isnan(one.probability) for one in found)
    assert all(0 <= share <= 1 for one in found for share in one.probabilities.values())


def test_numbers_are_learned(tmp_path: Path) -> None:
    run = fit(IMAGES, **GIVEN["number"], **VIT, **OPTIONS, out=tmp_path)
    one = run.predict(IMAGES[0])
    assert one.value == pytest.approx(NUMBERS[0], abs=60) and one.probabilities == {}
    with pytest.raises(UserError, match="predicts a number per image, which has no confusion matrix"):
        run.plot_confusion()
    assert run.metrics["val/r2"] > 0.9 and run.test()["test/mae"] < np.std(NUMBERS) / 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [["a|b"]] * ROWS, "multilabel": True}, r"labels: item 0 is \['a\|b'\]; give a list of classes"),
        ({"labels": ["a"] * ROWS, "multilabel": True}, "labels: item 0 is 'a'; give a list of classes"),
        ({"targets": ["far"] * ROWS}, "targets: item 0 is 'far'; give a finite number per image"),
        ({"targets": [math.inf] * ROWS}, "targets: item 0 is 'inf'; give a finite number per image"),
        ({"targets": [math.nan] * ROWS}, "targets: item 0 is missing"),
        ({"targets": [1.0]}, "targets: 1 for 40 images"),
        ({"targets": NUMBERS, "labels": ["a"] * ROWS}, "labels and targets are given"),
    ],
)
def test_what_cannot_be_learned_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageDataModule.from_images(IMAGES, **given)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GIVEN)
def test_a_fit_that_only_made_it_worse_says_so_and_keeps_the_start(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At this rate no weight of the backbone stays what it was."""
    rates = {"lr_backbone": 3.0, "lr_head": 1e-4, "gradient_clip_val": 1.0}
    run = fit(IMAGES, **GIVEN[kind], **VIT, **OPTIONS, **rates, regime="lp-ft", out=tmp_path)
    says = "no epoch is better on val than the start, so best.ckpt is the start (epoch 0); give lower rates"
    assert any(line.startswith(says) for line in caplog.messages)
    rows = pd.read_csv(run.path / "metrics.csv").set_index("epoch")
    name = {"labels": "val/map", "number": "val/r2"}[kind]
    assert rows[name][0] > rows[name][1:].max() and run.metrics[name] == pytest.approx(rows[name][0])


@pytest.mark.slow
def test_one_label_that_some_images_have(tmp_path: Path) -> None:
    """Present or absent: one output, its export a classifier of several labels of which there is one."""
    labels = [["r"] if has[0] else [] for has in HAS]
    run = fit(IMAGES, labels=labels, multilabel=True, **VIT, **OPTIONS, out=tmp_path)
    assert run.class_names == ["r"] and run.metrics["val/map"] > 0.9
    found = [parts_of(one.label) for one in run.predict(IMAGES)]
    assert np.mean([names == tuple(own) for names, own in zip(found, labels, strict=True)]) > 0.9
    run.extractor.save_pretrained(tmp_path / "export")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "export")
    assert model.config.problem_type == "multi_label_classification" and model.config.num_labels == 1


@pytest.mark.parametrize("kind", [pytest.param("labels", marks=pytest.mark.slow), "number"])
def test_a_val_that_says_nothing(kind: str, tmp_path: Path) -> None:
    """No image of val has any label, or all have the same number: the loss decides, and every file can be read."""
    rows = [row for row in range(ROWS) if not HAS[row].any()][:4]
    splits = ["val" if row in rows else "train" for row in range(ROWS)]
    given = GIVEN[kind] if kind == "labels" else {"targets": [0.0 if n in rows else x for n, x in enumerate(NUMBERS)]}
    run = fit(IMAGES, **given, splits=splits, **VIT, **{**OPTIONS, "report": True}, out=tmp_path)
    losses = pd.read_csv(run.path / "metrics.csv")["val/loss"]
    assert run.metrics["val/loss"] == pytest.approx(losses.min(), rel=1e-5) and len(losses) == 4
    json.loads((run.path / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    name = {"labels": "map", "number": "r2"}[kind]
    assert f"val/{name}" not in run.metrics and " on validation: undefined" in (run.path / "report.html").read_text()
    run.extractor.save_pretrained(tmp_path / "export")
    card = (tmp_path / "export/README.md").read_text()
    assert f"val/{name} " not in card and "val/loss" in card


@pytest.mark.slow
@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("regime", ["frozen", "full", "lp-ft"])
def test_resumed_it_ends_with_the_same_bits(kind: str, regime: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"

    def run(name: str, resume: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        seed_everything(0)
        module = TransferModule(**VIT, regime=regime, seed=0, lr_head=1e-2 if regime == "frozen" else None)  # type: ignore[arg-type]
        data = ImageDataModule.from_images(IMAGES, **GIVEN[kind], batch_size=8, num_workers=0)
        callbacks = [] if resume else [Cut(cut)]
        trainer = make_trainer(
            tmp_path / name, max_epochs=2, enable_progress_bar=False, accelerator="cpu", callbacks=callbacks
        )
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        return module.state_dict(), module.describe()

    whole, record = run("whole")
    again, other = run("again", cut)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert {key: record.get(key) for key in ("thresholds", "scale")} == {
        key: other.get(key) for key in ("thresholds", "scale")
    }
