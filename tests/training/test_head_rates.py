"""Heads that learn at once on cached embeddings: each as if alone, and the best on val is the one of the fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tests.tiny import RESNET, VIT, Cut
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.training import head_rates
from transferkit.training.head_rates import Heads, Measured
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1", "2"], "n_per_class": 12, "batch_size": 8, "num_workers": 0}
RATES, DECAYS = [1e-3, 3e-2], [0.0, 0.3]


class Watch(Callback):
    """val/acc and val/loss of each epoch."""

    def __init__(self) -> None:
        self.scores: list[tuple[float, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        self.scores.append((float(values["val/acc"]), float(values["val/loss"])))


def fit(
    run: Path, model: Mapping[str, Any], resume: Path | None = None, data: Mapping[str, Any] | None = None, **more: Any
) -> tuple[TransferModule, Watch]:
    seed_everything(0)
    module, watch = TransferModule(**{**VIT, **model}), Watch()
    callbacks = [watch, *more.pop("callbacks", [])]
    options: dict[str, Any] = {"max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu", **more}
    trainer = make_trainer(run, callbacks=callbacks, **options)
    trainer.fit(module, datamodule=ImageDataModule("digits", **{**DIGITS, **(data or {})}), ckpt_path=resume)
    return module, watch


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Heads, list[Measured]]]:
    """The heads of each choice, and what was measured of them."""
    seen: list[tuple[Heads, list[Measured]]] = []
    original = head_rates.train_heads

    def train(heads: Heads, *rest: Any) -> list[Measured]:
        seen.append((heads, original(heads, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(head_rates, "train_heads", train)
    return seen


CASES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {"class_weights": [1.0, 2.0, 3.0]}, {}),
    ({"optimizer": "sgd", "label_smoothing": 0.1}, {}, {"max_steps": 10}),
    ({"optimizer": "sgd", "momentum": 0.0, "l2_normalize": True}, {}, {}),
    ({"warmup_epochs": 0.5, "label_smoothing": 0.1}, {"augmentation": "strong", "views": 2}, {}),
]


@pytest.mark.parametrize(
    ("model", "data", "trainer"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])]
)
def test_each_head_learns_as_if_alone(
    tmp_path: Path,
    trained: list[tuple[Heads, list[Measured]]],
    model: dict[str, Any],
    data: dict[str, Any],
    trainer: dict[str, Any],
) -> None:
    """Compared with fits at one rate and decay each, by torch's own optimizers."""
    chosen, _ = fit(tmp_path / "all", {**model, "lr_head": RATES, "weight_decay": DECAYS}, data=data, **trainer)
    ((heads, measured),) = trained
    pairs, states = [(rate, decay) for rate in RATES for decay in DECAYS], []
    for number, (rate, decay) in enumerate(pairs):
        alone, watch = fit(
            tmp_path / str(number), {**model, "lr_head": rate, "weight_decay": decay}, data=data, **trainer
        )
        assert alone.head is not None
        expected = torch.cat([alone.head.weight, alone.head.bias[:, None]], 1).detach()
        assert torch.allclose(heads.weight[number], expected, atol=1e-5), (rate, decay)
        best = max(watch.scores, key=lambda pair: (pair[0], -pair[1]))
        assert measured[number][:2] == pytest.approx(best, abs=1e-5)
        states.append(alone.state_dict())
    order = [(row.accuracy, -row.loss) for row in measured]
    number = order.index(max(order))
    assert chosen.chosen == dict(zip(("lr_head", "weight_decay"), pairs[number], strict=True))
    assert alike(chosen.state_dict(), states[number])  # the fit is that of the chosen rate, to the bit


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_resumed_with_the_same_rate_and_no_other_choice(
    tmp_path: Path, trained: list[tuple[Heads, list[Measured]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "transferkit")
    cut = tmp_path / "cut.ckpt"
    whole, _ = fit(tmp_path / "whole", {"lr_head": "auto"}, callbacks=[Cut(cut)])
    (line,) = [record.message for record in caplog.records if record.name.startswith("transferkit")]
    assert line.startswith(f"the head learns at {whole.chosen['lr_head']:g}; val/acc by rate: 0.0003 0.")
    again, _ = fit(tmp_path / "again", {"lr_head": "auto"}, cut)
    assert len(trained) == 1 and again.chosen == whole.chosen
    assert alike(whole.state_dict(), again.state_dict())
    record = torch.load(tmp_path / "whole/checkpoints/best.ckpt", weights_only=True)["transferkit"]
    assert record["chosen"] == whole.chosen


@pytest.mark.slow
def test_lower_precision(tmp_path: Path) -> None:
    module, watch = fit(tmp_path / "run", {"lr_head": "auto"}, precision="bf16-mixed")
    assert module.chosen and watch.scores


@pytest.mark.parametrize(
    ("model", "data", "trainer", "says"),
    [
        ({"regime": "full"}, {}, {}, r"`lr_head=.*is for `regime=.frozen.`.*with full give one number"),
        ({"dropout": 0.1}, {}, {}, "without `dropout`; leave that out, or give one number each"),
        ({"optimizer": "lbfgs"}, {}, {}, "`lr_head` is for gradient steps, not `optimizer="),
        ({"ema": 0.9}, {}, {}, "without `ema`"),
        ({}, {"mixup": 0.2}, {}, "without `mixup`"),
        ({}, {"cache": "off"}, {}, "without `cache=off` and augmentation"),
        ({}, {}, {"accumulate_grad_batches": 2}, "without `accumulate_grad_batches`"),
        ({}, {}, {"gradient_clip_val": 1.0}, "without `gradient_clip_val`"),
        ({}, {}, {"limit_train_batches": 2}, "without `limit_train_batches`"),
    ],
)
def test_what_does_not_go_with_a_choice(
    tmp_path: Path, model: dict[str, Any], data: dict[str, Any], trainer: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        fit(tmp_path / "run", {"lr_head": RATES, **model}, data=data, **trainer)


@pytest.mark.parametrize("wrong", [[], [-1.0], [0.1, float("nan")], "fast", ["x"], True, [None]])
def test_rates_that_are_none(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"`lr_head` is .*; give a number"):
        TransferModule(**RESNET, lr_head=wrong)
    if wrong != "auto":
        with pytest.raises(UserError, match=r"`weight_decay` is .*; give a number"):
            TransferModule(**RESNET, weight_decay=wrong)
