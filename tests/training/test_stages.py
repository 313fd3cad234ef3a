"""Regime stages: what learns when, what does not move by a bit, and that a fit resumes in any phase."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tests.tiny import RESNET, VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor import Extractor
from transferkit.extractor.core import head_logits
from transferkit.training.module import TransferModule
from transferkit.training.stages import first_in_phase
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1"], "n_per_class": 12, "batch_size": 6, "num_workers": 0}
BATCHES = 4  # per epoch
MODELS = [VIT, pytest.param(RESNET, marks=pytest.mark.slow)]


class Phases(Callback):
    """The state and the stages that learn after each step; a checkpoint of chosen steps."""

    def __init__(self, cuts: Mapping[int, Path]) -> None:
        self.cuts, self.states, self.learning = cuts, list[dict[str, Tensor]](), list[int]()
        self.graphs: list[int] = []  # number of parameters whose gradient is computed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TransferModule)
        self.on_train_start(trainer, pl_module)
        self.learning.append(pl_module.learns_from)
        self.graphs.append(sum(parameter.requires_grad for parameter in pl_module.parameters()))
        if path := self.cuts.get(trainer.global_step):
            trainer.save_checkpoint(path)


def fit(
    run: Path,
    model: Mapping[str, Any],
    resume: Path | None = None,
    cuts: Mapping[int, Path] | None = None,
    epochs: int = 3,
    precision: Any = "32-true",
    **options: Any,
) -> tuple[TransferModule, Phases]:
    seed_everything(0)
    phases = Phases(cuts or {})
    module = TransferModule(**{"regime": "stages", "lr_backbone": 1e-3, **model, **options})
    trainer = make_trainer(
        run, max_epochs=epochs, callbacks=[phases], precision=precision, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS), ckpt_path=resume)
    return module, phases


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_phases_are_equally_long() -> None:
    """Of five stages and twelve epochs, six phases of two epochs each."""
    assert [first_in_phase((epoch + 0.5) / 12, 5) for epoch in range(12)] == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert first_in_phase(0.0, 13) == 13 and first_in_phase(1.0, 13) == 0


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_nothing_below_the_stages_that_learn_moves(tmp_path: Path, model: dict[str, Any], optimizer: str) -> None:
    module, phases = fit(tmp_path / "run", model, optimizer=optimizer, weight_decay=0.1)
    backbone = module.backbone
    count, steps = len(backbone.stages), 3 * BATCHES
    assert phases.learning == [first_in_phase((step + 0.5) / steps, count) for step in range(steps)]
    assert set(phases.learning) == set(range(count + 1))
    for first, before, after in zip(phases.learning, phases.states, phases.states[1:], strict=False):
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        stages = {backbone.stage_of(name.removeprefix("backbone.model.")) for name in moved if "backbone" in name}
        assert {"head.weight", "head.bias"} <= moved and stages == set(range(first, count))
    sizes = [backbone.stage_of(name) for name, _ in backbone.model.named_parameters()]
    assert phases.graphs == [
        2 + sum(stage >= first for stage in sizes) for first in phases.learning
    ]  # no idle backward
    assert all(parameter.requires_grad for parameter in backbone.parameters())  # for another fit
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("stages")
    assert [float(row.split(",")[place]) for row in rows[1:]] == [count - first for first in phases.learning[3::4]]


@pytest.mark.parametrize("model", MODELS)
def test_killed_in_any_phase_and_resumed(tmp_path: Path, model: dict[str, Any]) -> None:
    cuts = {step: tmp_path / f"{step}.ckpt" for step in (1, 5, 8, 10)}
    whole, phases = fit(tmp_path / "whole", model, cuts=cuts)
    assert len({phases.learning[step - 1] for step in cuts}) == 4
    for step, cut in cuts.items():
        again, rest = fit(tmp_path / f"again-{step}", model, cut)
        assert rest.learning == phases.learning[step:]
        assert alike(whole.state_dict(), again.state_dict()), step


@pytest.mark.slow
def test_a_stage_that_learns_goes_on_in_a_longer_fit(tmp_path: Path) -> None:
    fit(tmp_path / "run", VIT)
    _, phases = fit(tmp_path / "longer", VIT, tmp_path / "run/checkpoints/last.ckpt", epochs=6)
    assert phases.learning == [0] * 3 * BATCHES


def test_the_phase_is_the_gradient_of_a_frozen_network(tmp_path: Path) -> None:
    """The head's phase, in plain PyTorch: SGD on embeddings of the network in eval mode."""
    module, phases = fit(tmp_path / "run", RESNET, epochs=1, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    start, after = phases.states[:2]
    assert phases.learning[0] == len(module.backbone.stages)
    module.load_state_dict(start)
    module.eval()
    data = module.data
    data.trainer = None
    batch = next(iter(data.train_dataloader()))
    head = nn.Linear(512, 2)
    head.load_state_dict({"weight": start["head.weight"], "bias": start["head.bias"]})
    with torch.no_grad():
        embedding = module.embed(batch)
    nn.functional.cross_entropy(head(embedding), batch["target"]).backward()
    rate = 3e-3 * (0.5 / BATCHES) / 0.5  # within the warm-up, half of one epoch
    assert head.weight.grad is not None
    assert torch.allclose(after["head.weight"], start["head.weight"] - rate * head.weight.grad, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", [VIT, RESNET])
def test_lower_precision_the_average_and_the_export(tmp_path: Path, model: dict[str, Any], precision: str) -> None:
    module, _ = fit(tmp_path / "run", model, precision=precision, ema=0.5)
    best = Extractor.from_pretrained(tmp_path / "run/checkpoints/last.ckpt")
    best.save_pretrained(tmp_path / "export")
    again = Extractor.from_pretrained(tmp_path / "export")
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert again.head is not None
    with torch.no_grad():
        logits = head_logits(again.head, again(pixels).clone(), again.l2_normalize)
        assert torch.allclose(logits, module.eval()(pixels), atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_module_can_fit_again(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    module = TransferModule(**VIT, regime="stages")
    data = ImageDataModule("digits", **DIGITS)
    options: dict[str, Any] = {"max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu"}
    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path / "stopped", callbacks=[Stop()], **options).fit(module, datamodule=data)
    phases = Phases({})
    make_trainer(tmp_path / "again", callbacks=[phases], **options).fit(module, datamodule=data)
    assert phases.learning[0] == len(module.backbone.stages) and phases.learning[-1] == 0
