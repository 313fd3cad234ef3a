import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torchvision import models
from transformers.pytorch_utils import Conv1D

from tests.backbones.families import CONFIGS, make
from tests.tiny import VIT
from transferkit.backbones import Backbone, build
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.training.module import TransferModule
from transferkit.training.optimizers import (
    CosineWithWarmup,
    check_length,
    decayed_parameters,
    learning_rates,
    make_optimizer,
    parameter_groups,
)
from transferkit.training.regimes import Regime, first_trainable, freeze
from transferkit.training.trainer import make_trainer, seed_everything


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


# One a family by default, and every family.
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Parameters that no network wants near zero, by the names that the libraries give them.
SPARED = ("class_token", "cls_token", "pos_embed", "position_embedding", "relative_position_bias_table", "logit_scale")
SPARED += (
    "layer_scale",
    "lambda",
    "register_tokens",
    "mask_token",
    "probe",
    "distillation_token",
    "bias",
    "norm",
    "grn",
)


def walked(model: nn.Module) -> set[str]:
    """Names of the weights of linear layers and convolutions, module by module."""
    return {
        f"{place}.{name}".lstrip(".")
        for place, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if (isinstance(module, LINEAR) and name == "weight")
        or (isinstance(module, nn.MultiheadAttention) and name in ATTENTION)
    }


def plain_torchvision(name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNet computes its widths with tensors
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def check_decayed(model: nn.Module) -> None:
    decayed = decayed_parameters(model)
    names = {name for name, parameter in model.named_parameters() if parameter in decayed}
    assert names == walked(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or any(part in name.split(".")[-1] for part in SPARED):
            assert name not in names, name
    assert {name for name, parameter in model.named_parameters() if parameter.ndim == 4} <= names | {
        name for name in dict(model.named_parameters()) if any(part in name for part in SPARED)
    }, "kernels of convolutions"


@pytest.mark.parametrize("name", FAMILIES)
def test_weight_decay_is_for_linear_layers_and_convolutions_of_torchvision(name: str) -> None:
    check_decayed(plain_torchvision(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models.list_models(module=models)) - set(FAMILIES) - {"regnet_y_128gf"}))
def test_weight_decay_of_every_torchvision_model(name: str) -> None:
    check_decayed(plain_torchvision(name))


@pytest.mark.parametrize("family", CONFIGS)
def test_weight_decay_is_for_linear_layers_and_convolutions_of_transformers(family: str) -> None:
    check_decayed(make(family))


def test_weight_decay_of_transformers_own_linear_layer() -> None:
    """Conv1D is x @ weight + bias, as in ImageGPT."""
    module = nn.Sequential(Conv1D(3, 2), nn.Embedding(4, 2), nn.LayerNorm(2), nn.PReLU())
    assert decayed_parameters(module) == {module[0].weight}


def test_groups_decay_what_is_to_be_decayed(backbone: Backbone) -> None:
    groups = groups_of(backbone)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    decayed = walked(backbone.model)
    for name, parameter in backbone.model.named_parameters():
        assert decay[id(parameter)] == (0.05 if name in decayed else 0.0), name
    head = [group for group in groups if group["name"].startswith("head")]
    assert {(p.ndim, group["weight_decay"]) for group in head for p in group["params"]} == {(2, 0.05), (1, 0.0)}


def scheduled() -> tuple[torch.optim.Optimizer, CosineWithWarmup]:
    optimizer = make_optimizer("sgd", [{"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0}], 0.9)
    return optimizer, CosineWithWarmup(optimizer)


def test_schedule_is_linear_then_cosine() -> None:
    optimizer, schedule = scheduled()
    for progress in (0.05, 0.15, 0.3, 0.5, 0.95):
        schedule.set_progress(progress, warmup=0.2)
        wanted = progress / 0.2 if progress < 0.2 else (1 + math.cos(math.pi * (progress - 0.2) / 0.8)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * wanted)
        optimizer.step()
        schedule.step()  # Lightning does so after each step
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * wanted)


def test_a_schedule_keeps_nothing_of_an_earlier_fit() -> None:
    _, first = scheduled()
    first.set_progress(1.0, 0.0)
    optimizer, second = scheduled()
    second.load_state_dict(first.state_dict())
    second.set_progress(0.5, 0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


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


class Rates(Callback):
    """Measures the rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates_of(
    tmp_path: Path, photo_folder: Path, ckpt: Path | None = None, batch: int = 2, **options: Any
) -> tuple[list[float], Path]:
    """The rates of a fit of 12 images, and its checkpoint."""
    seed_everything(0)
    watch, run = Rates(), tmp_path / str(len(list(tmp_path.iterdir())))
    module = TransferModule(**VIT, lr_head=1.0, warmup_epochs=1.0, optimizer="sgd")
    data = ImageDataModule(str(photo_folder), batch_size=batch, num_workers=0)
    trainer = make_trainer(run, enable_progress_bar=False, accelerator="cpu", callbacks=[watch], **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return watch.seen, run / "checkpoints" / "last.ckpt"


def wanted(steps: int, warmup: float) -> list[float]:
    """The rates by definition, in the middle of each step."""
    shares = [(step + 0.5) / steps for step in range(steps)]
    return [p / warmup if p < warmup else (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))) / 2 for p in shares]


@pytest.mark.parametrize(
    ("options", "steps", "warmup"),
    [
        ({"max_epochs": 4}, 24, 1 / 4),
        ({"max_epochs": 40, "max_steps": 24}, 24, 6 / 24),  # an epoch of warm-up is an epoch, whatever ends the fit
        ({"max_epochs": -1, "max_steps": 24}, 24, 6 / 24),
        ({"max_epochs": 1}, 6, 1 / 2),
        ({"max_epochs": 4, "limit_train_batches": 3}, 12, 1 / 4),
        ({"max_epochs": 4, "limit_train_batches": 0.5}, 12, 1 / 4),
    ],
)
def test_the_schedule_ends_with_the_fit(
    tmp_path: Path, photo_folder: Path, options: dict[str, Any], steps: int, warmup: float
) -> None:
    rates, _ = rates_of(tmp_path, photo_folder, **options)
    assert rates == pytest.approx(wanted(steps, warmup))


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"batch": 2}, 0.5 / 6),  # the middle of the first step, in epochs
        ({"batch": 6}, 0.5 / 2),
        ({"accumulate_grad_batches": 3}, 2.5 / 6),  # of the batch after which the first step is
    ],
)
def test_a_fit_resumed_with_other_steps_per_epoch_goes_on_where_it_was(
    tmp_path: Path, photo_folder: Path, change: dict[str, Any], first: float
) -> None:
    before, checkpoint = rates_of(tmp_path, photo_folder, max_epochs=2)
    assert before[-1] < 0.02  # it is finished
    later, _ = rates_of(tmp_path, photo_folder, checkpoint, max_epochs=4, **change)
    share = (2 + first) / 4
    assert later[0] == pytest.approx((1 + math.cos(math.pi * (share - 0.25) / 0.75)) / 2)
    assert later == sorted(later, reverse=True) and later[-1] < 0.1


def test_a_fit_without_an_end_or_a_validation() -> None:
    with pytest.raises(UserError, match="give `max_epochs` or `max_steps`"):
        check_length(Trainer(max_epochs=-1, logger=False, accelerator="cpu"), batches=7)
    with pytest.raises(UserError, match="`val_check_interval` is 9, an epoch has 7 batches"):
        check_length(Trainer(val_check_interval=9, max_epochs=1, logger=False, accelerator="cpu"), batches=7)
