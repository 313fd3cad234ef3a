import math
from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from tests.tiny import VIT
from transferkit.backbones import Backbone, build
from transferkit.errors import UserError
from transferkit.freezing import Regime, first_trainable, freeze
from transferkit.optimizers import (
    cosine_with_warmup,
    learning_rates,
    make_optimizer,
    optimizer_steps,
    parameter_groups,
)


@pytest.fixture(scope="module", params=["resnet", "vit"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    if request.param == "resnet":
        return build("resnet18", "none")
    return build(VIT["backbone"], "none", architecture=VIT["architecture"])


def groups_of(backbone: Backbone, regime: Regime = "full", decay: float = 1.0) -> list[dict[str, Any]]:
    freeze(backbone, first_trainable(backbone, regime, 2))
    head = nn.Linear(backbone.embed_dim, 3)
    return parameter_groups(backbone, head, 1e-2, 1e-3, decay, 0.05)


@pytest.mark.parametrize("regime", ["frozen", "partial", "full", "scratch"])
def test_every_trainable_parameter_is_in_exactly_one_group(backbone: Backbone, regime: Regime) -> None:
    groups = groups_of(backbone, regime)
    found = Counter(id(parameter) for group in groups for parameter in group["params"])
    learning = {id(parameter) for parameter in backbone.model.parameters() if parameter.requires_grad}
    assert set(found.values()) == {1}
    assert len(found) == len(learning) + 2  # the head's weight and bias
    assert learning < set(found)
    assert len({group["name"] for group in groups}) == len(groups)


def test_head_learns_at_its_own_rate(backbone: Backbone) -> None:
    rates = {group["name"].split("/")[0]: group["lr"] for group in groups_of(backbone)}
    assert rates == {"head": 1e-2, "backbone": 1e-3}


def stage_by_name(backbone: Backbone, name: str) -> int:
    """Stage of a parameter, read from the libraries' own names: an oracle for ``stage_of``."""
    if backbone.name == "resnet18":
        return int(name[5]) if name.startswith("layer") else 0
    last = VIT["architecture"]["num_hidden_layers"]
    if name.startswith("embeddings."):
        return 0
    return 1 + int(name.split("layers.")[1].split(".")[0]) if "layers." in name else last


def test_layer_decay_by_distance_from_the_head(backbone: Backbone) -> None:
    rate = {id(p): group["lr"] for group in groups_of(backbone, decay=0.5) for p in group["params"]}
    last = len(backbone.stages) - 1
    for name, parameter in backbone.model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (last - stage_by_name(backbone, name))), name


def test_no_weight_decay_on_norms_biases_and_tokens(backbone: Backbone) -> None:
    decay = {id(p): group["weight_decay"] for group in groups_of(backbone) for p in group["params"]}
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    spared = {
        id(parameter)
        for module in backbone.model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, norms) or name in ("bias", "cls_token", "position_embeddings")
    }
    for name, parameter in backbone.model.named_parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in spared else 0.05), name


def test_schedule_is_linear_then_cosine() -> None:
    optimizer = make_optimizer("sgd", [{"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0}], 0.9)
    schedule = cosine_with_warmup(optimizer, steps=10, warmup=3)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    wanted = [2 * (step + 1) / 4 for step in range(3)]
    wanted += [1 + math.cos(math.pi * (step - 3) / 7) for step in range(3, 10)]
    assert rates == pytest.approx(wanted)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-7)


def test_adamw_decays_the_weight_apart_from_the_gradient() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer("adamw", [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}], 0.9)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))


def test_sgd_has_nesterov_momentum() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer("sgd", [{"params": [weight], "lr": 1.0}], momentum=0.5)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == pytest.approx(-1.5)  # gradient + momentum x velocity
    assert not make_optimizer("sgd", [{"params": [weight], "lr": 1.0}], 0.0).defaults["nesterov"]


def test_learning_rate_of_a_part_is_its_highest() -> None:
    rates = {"head": 1.0, "backbone/layer4": 0.5, "backbone/layer1/no_decay": 0.25}
    groups = [{"name": name, "params": [nn.Parameter(torch.zeros(1))], "lr": lr} for name, lr in rates.items()]
    assert learning_rates(torch.optim.SGD(groups)) == {"lr/head": 1.0, "lr/backbone": 0.5}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 21),
        ({"max_epochs": 3, "max_steps": 10}, 10),
        ({"max_epochs": -1, "max_steps": 10}, 10),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 12),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 9),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 0}, 1),
    ],
)
def test_steps_of_a_fit(options: dict[str, Any], steps: int) -> None:
    trainer = Trainer(**options, logger=False, accelerator="cpu", enable_checkpointing=False)
    assert optimizer_steps(trainer, batches=7) == steps


def test_steps_of_a_fit_without_an_end() -> None:
    with pytest.raises(UserError, match=r"give --trainer.max_epochs or --trainer.max_steps"):
        optimizer_steps(Trainer(max_epochs=-1, logger=False, accelerator="cpu"), batches=7)
