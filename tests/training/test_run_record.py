"""What a run keeps: which weights and figures, at which step; and that a fit goes on from any checkpoint."""

import csv
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

from tests.tiny import RESNET, VIT
from transferkit.backbones.weights import state_sha256
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import epoch_of
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

FULL = {**VIT, "regime": "full", "lr_backbone": 1e-2, "lr_head": 1e-2}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


def data(folder: Path, **options: Any) -> ImageDataModule:
    return ImageDataModule(str(folder), **{"batch_size": 3, "num_workers": 0, **options})  # 4 batches of training


def fit(run: Path, folder: Path, model: dict[str, Any], resume: Path | None = None, **options: Any) -> TransferModule:
    seed_everything(1)
    module = TransferModule(**model)
    trainer = make_trainer(run, **{**QUIET, "max_epochs": 3, **options})
    trainer.fit(module, datamodule=data(folder), ckpt_path=resume)
    return module


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def accuracy(path: Path, folder: Path) -> float:
    """Measured anew, from the file alone: a plain loop over the images."""
    extractor = Extractor.from_pretrained(path)
    files = sorted((folder / "val").rglob("*.*"))
    found = extractor.classify(extractor.embed(list(files))).argmax(1)
    wanted = torch.tensor([extractor.class_names.index(file.parent.name) for file in files])
    return float((found == wanted).float().mean())


class Weights(Callback):
    """The weights at the end of each validation, and what was measured of them."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, str]] = []
        self.losses: dict[int, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = float(trainer.callback_metrics["val/acc"])
        self.seen.append((trainer.global_step, score, state_sha256(pl_module.state_dict())))
        self.losses[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


@pytest.mark.parametrize("model", [FULL, {**RESNET, "lr_head": 1e-2}])
@pytest.mark.parametrize("options", [{"val_check_interval": 0.5}, {"val_check_interval": 1}, {}])
def test_best_holds_the_weights_that_were_measured(
    tmp_path: Path, photo_folder: Path, model: dict[str, Any], options: dict[str, Any]
) -> None:
    watch, run = Weights(), tmp_path / "run"
    fit(run, photo_folder, model, callbacks=[watch], **options)
    best = load(run / "checkpoints/best.ckpt")
    step, score, sha256 = max(watch.seen, key=lambda one: (one[1], -watch.losses[one[0]]))
    assert (best["global_step"], state_sha256(best["state_dict"])) == (step, sha256)
    assert best["transferkit"]["metrics"]["val/acc"] == pytest.approx(score)
    assert accuracy(run / "checkpoints/best.ckpt", photo_folder) == pytest.approx(score)
    within = step % 4 != 0
    assert ("train/loss" in best["transferkit"]["metrics"]) is not within  # that of the epoch is not yet known
    assert [row["epoch"] for row in rows(run) if not row.get("step")] == ["1", "2", "3"]
    told = {int(row.get("step") or 4 * int(row["epoch"])): row for row in rows(run)}
    assert {step: float(row["val/acc"]) for step, row in told.items()} == pytest.approx(
        {step: score for step, score, _ in watch.seen}
    )


def test_figures_of_an_earlier_validation_are_not_told(tmp_path: Path, photo_folder: Path) -> None:
    run = tmp_path / "run"
    fit(run, photo_folder, FULL, check_val_every_n_epoch=2)
    assert [bool(row["val/acc"]) for row in rows(run)] == [False, True, False]
    assert all(row["train/loss"] for row in rows(run))
    last = Extractor.from_pretrained(run / "checkpoints/last.ckpt")
    assert last.record["epoch"] == 3 and not [name for name in last.record["metrics"] if name.startswith("val/")]
    last.save_pretrained(tmp_path / "export")
    assert "val/acc" not in (tmp_path / "export/README.md").read_text()
    best = load(run / "checkpoints/best.ckpt")
    assert epoch_of(best) == 2 and best["transferkit"]["metrics"]["val/acc"] == pytest.approx(
        accuracy(run / "checkpoints/best.ckpt", photo_folder)
    )


def test_max_steps_in_the_midst_of_an_epoch(tmp_path: Path, photo_folder: Path) -> None:
    run = tmp_path / "run"
    fit(run, photo_folder, FULL, max_steps=6)
    assert [(row["epoch"], bool(row["val/acc"])) for row in rows(run)] == [("1", True), ("2", False)]
    assert rows(run)[0]["train/loss"] != rows(run)[1]["train/loss"]
    assert epoch_of(load(run / "checkpoints/last.ckpt")) == 2


def test_the_rest_of_an_epoch_is_for_as_many_processes(tmp_path: Path, photo_folder: Path) -> None:
    last = tmp_path / "run/checkpoints/last.ckpt"
    fit(tmp_path / "run", photo_folder, FULL, max_steps=6)
    content = load(last)
    content["transferkit_epoch"]["processes"] = 2  # as two would have written
    torch.save(content, last)
    with pytest.raises(UserError, match=r"epoch that 2 processes shared, this fit has 1; give as many"):
        fit(tmp_path / "run", photo_folder, FULL, last)


def test_a_fit_goes_on_with_the_optimizer_that_it_began_with(tmp_path: Path, photo_folder: Path) -> None:
    """By default the head is solved for; earlier versions took AdamW."""
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    alone = fit(tmp_path / "alone", photo_folder, {**RESNET, "optimizer": "adamw"}, callbacks=[keep])
    module = fit(tmp_path / "resumed", photo_folder, RESNET, tmp_path / "epoch=0.ckpt")
    assert type(module.optimizers().optimizer) is torch.optim.AdamW and module.trainer.global_step == 3 * 4
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value)


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ({"optimizer": "adamw"}, {"optimizer": "lbfgs"}, "a fit with optimizer adamw, this one has lbfgs"),
        ({"optimizer": "adamw"}, {"optimizer": "sgd"}, "a fit with optimizer adamw, this one has sgd"),
        ({}, {"optimizer": "adamw"}, "a fit with optimizer lbfgs, this one has adamw"),
        ({}, {"regime": "full"}, "a fit with regime frozen, this one has full"),
    ],
)
def test_other_optimizers_and_regimes_are_refused(
    tmp_path: Path, photo_folder: Path, before: dict[str, Any], now: dict[str, Any], says: str
) -> None:
    begun = tmp_path / "run/checkpoints/last.ckpt"
    fit(tmp_path / "run", photo_folder, {**RESNET, **before}, max_epochs=1)
    with pytest.raises(UserError, match=f"{says}; give the same"):
        fit(tmp_path / "run", photo_folder, {**RESNET, **now}, begun)


def test_a_callback_that_unfreezes_is_refused(tmp_path: Path, photo_folder: Path) -> None:
    """From Python as from the command line: the schedule knows the groups that the fit begins with."""
    with pytest.raises(UserError, match="the callback BackboneFinetuning unfreezes within a fit"):
        fit(tmp_path / "run", photo_folder, FULL, callbacks=[BackboneFinetuning(1)])


@pytest.mark.parametrize("regime", ["frozen", "partial", "full"])
def test_pruning_of_weights_that_do_not_learn_is_refused(tmp_path: Path, photo_folder: Path, regime: str) -> None:
    """The embeddings of a frozen backbone are cached: the head would learn on those of other weights."""
    refused = pytest.raises(UserError, match="ModelPruning prunes layers that do not learn")
    pruning = ModelPruning("l1_unstructured", amount=0.5)
    with nullcontext() if regime == "full" else refused:
        fit(tmp_path / "run", photo_folder, {**VIT, "regime": regime}, max_epochs=1, callbacks=[pruning])


def test_weights_alone_are_no_fit_to_go_on_with(tmp_path: Path, photo_folder: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="weights", save_weights_only=True)
    fit(tmp_path / "run", photo_folder, RESNET, max_epochs=1, callbacks=[keep])
    with pytest.raises(UserError, match="holds weights only"):
        fit(tmp_path / "run", photo_folder, RESNET, tmp_path / "weights.ckpt")


def test_a_weight_that_is_pruned_for_now_is_opened_as_it_computes(tmp_path: Path, photo_folder: Path) -> None:
    pruning = ModelPruning("l1_unstructured", amount=0.5, make_pruning_permanent=False)
    module = fit(tmp_path / "run", photo_folder, FULL, max_epochs=2, callbacks=[pruning])
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert "head.weight_mask" in load(last)["state_dict"]
    opened = Extractor.from_pretrained(last)
    assert opened.head is not None and torch.equal(opened.head.weight, module.head.weight)
    assert (opened.head.weight == 0).any()
    assert torch.equal(module.as_extractor().head.weight, module.head.weight)
    fit(tmp_path / "run", photo_folder, FULL, last)


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        (RESNET, [{"max_steps": 3}, {"max_steps": 5}]),  # a step per epoch, as the head is solved for
        (RESNET, [{"max_epochs": 3}, {"max_steps": 5}]),
        ({**RESNET, "lr_head": 1e-3}, [{"max_steps": 8}, {"max_steps": 20}]),  # of four steps per epoch, and five
        ({**RESNET, "lr_head": 1e-3}, [{"max_steps": 8}, {"max_epochs": 5}]),
    ],
)
def test_a_fit_that_ended_with_an_epoch_goes_on_in_the_next(
    tmp_path: Path, photo_folder: Path, model: dict[str, Any], limits: list[dict[str, int]]
) -> None:
    run = tmp_path / "run"
    fit(run, photo_folder, model, **{"max_epochs": 9, **limits[0]})
    before = rows(run)
    fit(run, photo_folder, model, run / "checkpoints/last.ckpt", **{"max_epochs": 9, **limits[1]})
    assert rows(run)[: len(before)] == before
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4", "5"]
    assert all(row["train/loss"] and row["val/loss"] for row in rows(run))


@pytest.mark.parametrize("model", [{**FULL, "dropout": 0.3}, {**RESNET, "dropout": 0.3}])
@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 6])
def test_a_fit_goes_on_from_any_step(tmp_path: Path, photo_folder: Path, model: dict[str, Any], step: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keep = ModelCheckpoint(cut, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    wanted = fit(whole, photo_folder, model, callbacks=[keep]).state_dict()
    found = fit(tmp_path / "resumed", photo_folder, model, cut / f"step={step}.ckpt").state_dict()
    times = ("epoch_time",)
    expected = [{k: v for k, v in row.items() if k not in times} for row in rows(whole)]
    resumed = [{k: v for k, v in row.items() if k not in times} for row in rows(tmp_path / "resumed")]
    assert resumed == expected[-len(resumed) :] and len(resumed) == 3 - step // 4
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


class Zero(Callback):
    """Validates the state before the first step, as a fit from a trained head does."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


@pytest.mark.parametrize("model", [{**FULL, "lr_backbone": 0.0, "lr_head": 0.0}, {**RESNET, "lr_head": 0.0}])
def test_the_state_before_the_first_step_can_be_the_best(
    tmp_path: Path, photo_folder: Path, model: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    module = fit(run, photo_folder, model, callbacks=[Zero()])
    assert [row["epoch"] for row in rows(run)] == ["0", "1", "2", "3"]
    best = load(run / "checkpoints/best.ckpt")
    assert (epoch_of(best), best["global_step"]) == (0, 0)
    assert state_sha256(best["state_dict"]) == state_sha256(module.state_dict())
    assert set(best["transferkit"]["metrics"]) == {"val/acc", "val/loss", "val/ece", "val/f1_macro"}


def test_sanity_checks_are_no_validation(tmp_path: Path, photo_folder: Path) -> None:
    run = tmp_path / "run"
    fit(run, photo_folder, FULL, num_sanity_val_steps=1)
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]


def test_best_and_last_share_their_bytes_where_they_are_equal(tmp_path: Path, photo_folder: Path) -> None:
    run = tmp_path / "run/checkpoints"
    fit(tmp_path / "run", photo_folder, {**RESNET, "lr_head": 1e-3}, max_epochs=1)
    assert run.joinpath("best.ckpt").samefile(run / "last.ckpt")
    fit(tmp_path / "run", photo_folder, {**RESNET, "lr_head": 0.0}, resume=run / "last.ckpt", max_epochs=2)
    assert not run.joinpath("best.ckpt").samefile(run / "last.ckpt")
    assert [epoch_of(load(run / f"{name}.ckpt")) for name in ("best", "last")] == [1, 2]


AVERAGES = {
    "EMA": lambda: EMAWeightAveraging(decay=0.7),
    "average": WeightAveraging,
    "SWA": lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["EMA", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("average", "SWA"))])
@pytest.mark.parametrize("model", [pytest.param({**RESNET, "regime": "full"}, marks=pytest.mark.slow), RESNET])
def test_callbacks_that_copy_the_module(tmp_path: Path, photo_folder: Path, kind: str, model: dict[str, Any]) -> None:
    for ours in (True, False):  # a plain Trainer too
        seed_everything(1)
        place = tmp_path / str(ours)
        given = {**QUIET, "max_epochs": 3, "callbacks": [AVERAGES[kind](), ModelCheckpoint(place / "mine")]}
        trainer = make_trainer(place, **given) if ours else Trainer(default_root_dir=place, logger=False, **given)
        trainer.fit(TransferModule(**model), datamodule=data(photo_folder))
        files = list(place.rglob("*.ckpt"))
        assert len(files) == (3 if ours else 1)
        for path in files:
            assert Extractor.from_pretrained(path).class_names == ["apples", "limes"]


def test_a_checkpoint_of_a_plain_trainer_stands_alone(tmp_path: Path, photo_folder: Path) -> None:
    seed_everything(1)
    module, keep = (
        TransferModule(**RESNET, optimizer="adamw"),
        ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1),
    )
    trainer = Trainer(**QUIET, max_epochs=2, callbacks=[keep], logger=False, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data(photo_folder))
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == 2
    for path in files:
        opened = Extractor.from_pretrained(path)
        assert state_sha256(opened.backbone.state_dict()) == state_sha256(module.backbone.state_dict())


@pytest.mark.parametrize("which", ["best", "a file"])
def test_python_tests_a_checkpoint_after_its_fit(tmp_path: Path, photo_folder: Path, which: str) -> None:
    seed_everything(1)
    module, images, run = TransferModule(**RESNET), data(photo_folder), tmp_path / "run"
    trainer = make_trainer(run, **QUIET, max_epochs=2)
    trainer.fit(module, datamodule=images)
    best = run / "checkpoints/best.ckpt"
    (found,) = trainer.test(module, images, ckpt_path="best" if which == "best" else best, verbose=False)
    assert found["test/acc"] == pytest.approx(load(best)["transferkit"]["metrics"]["val/acc"])


class Embeds(Callback):
    """Uses the extractor at the end of each epoch, as a probe of the embeddings would."""

    def __init__(self, image: Tensor) -> None:
        self.image, self.found = image, []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        modes = [part.training for part in pl_module.modules()]
        extractor = pl_module.as_extractor()
        self.found.append(extractor.embed([self.image]))
        assert any(modes) and [part.training for part in pl_module.modules()] == modes
        assert not any(part.training for part in extractor.backbone.modules())
        assert all(
            one.data_ptr() == other.data_ptr()
            for one, other in zip(extractor.backbone.parameters(), pl_module.backbone.parameters(), strict=True)
        )


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({**RESNET, "regime": "full"}, marks=pytest.mark.slow),
        {**RESNET, "regime": "partial"},
    ],
)
def test_an_extractor_taken_within_a_fit_does_not_change_it(
    tmp_path: Path, photo_folder: Path, model: dict[str, Any]
) -> None:
    watch = Embeds(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8))
    alone = fit(tmp_path / "alone", photo_folder, model).state_dict()
    module = fit(tmp_path / "watched", photo_folder, model, callbacks=[watch])
    assert all(torch.equal(value, alone[key]) for key, value in module.state_dict().items())
    torch.testing.assert_close(watch.found[-1], module.as_extractor().embed([watch.image]))


def test_a_head_on_normalized_embeddings_goes_on(
    tmp_path: Path, photo_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(tmp_path / "run", photo_folder, {**RESNET, "l2_normalize": True})
    path = str(tmp_path / "run/checkpoints/last.ckpt")
    second = TransferModule(path)
    assert second.l2_normalize and first.head and second.head
    assert torch.equal(first.head.weight, second.head.weight) and "head of" not in caplog.text
    assert TransferModule(path, l2_normalize=False).head is None
    assert "`l2_normalize=False` differs from what the head of" in caplog.text
