import pytest
import torch
from torch import nn

from tests.tiny import VIT
from transferkit.backbones import Backbone, build
from transferkit.errors import UserError
from transferkit.freezing import Regime, count_parameters, first_trainable, freeze, frozen_keys, set_mode

RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return build("resnet18", "none")


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return build(VIT["backbone"], "none", architecture=VIT["architecture"])


@pytest.mark.parametrize(
    ("regime", "last", "first"),
    [("frozen", 1, 5), ("partial", 1, 4), ("partial", 5, 0), ("full", 1, 0), ("scratch", 1, 0)],
)
def test_first_trainable_stage(resnet: Backbone, regime: Regime, last: int, first: int) -> None:
    assert len(resnet.stages) == len(RESNET_STAGES)
    assert first_trainable(resnet, regime, last) == first


@pytest.mark.parametrize("last", [0, 6, -1])
def test_a_number_of_stages_that_there_is_not(resnet: Backbone, last: int) -> None:
    with pytest.raises(UserError, match=f"unfreeze_last {last}: resnet18 has 5 stages .*give 1 to 5"):
        first_trainable(resnet, "partial", last)


def test_resnet_partial_learns_layer4_alone(resnet: Backbone) -> None:
    freeze(resnet, 4)
    learning = {name for name, parameter in resnet.model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in resnet.model.named_parameters() if name.startswith("layer4.")}


def test_vit_partial_keeps_embeddings_and_early_blocks(vit: Backbone) -> None:
    freeze(vit, first_trainable(vit, "partial", 1))
    still = {name for name, parameter in vit.model.named_parameters() if not parameter.requires_grad}
    assert {name for name in still if "layers.1." in name or name.startswith("layernorm")} == set()
    assert any("cls_token" in name for name in still) and any("layers.0." in name for name in still)


def test_freeze_can_be_taken_back(resnet: Backbone) -> None:
    freeze(resnet, 5)
    assert not any(parameter.requires_grad for parameter in resnet.parameters())
    freeze(resnet, 0)
    assert all(parameter.requires_grad for parameter in resnet.model.parameters())


@pytest.mark.parametrize("first", [0, 2, 4, 5])
def test_batchnorm_moves_in_learning_stages_only(resnet: Backbone, first: int) -> None:
    set_mode(resnet, first, training=True)
    before = {name: value.clone() for name, value in resnet.model.named_buffers()}
    with torch.no_grad():
        resnet(torch.randn(4, 3, 32, 32))
    for name, value in resnet.model.named_buffers():
        stage = RESNET_STAGES.index(name.split(".")[0]) if name.startswith("layer") else 0
        assert torch.equal(value, before[name]) is (stage < first), name


@pytest.mark.parametrize("first", [0, 2, 5])
def test_evaluation_mode_is_evaluation_everywhere(resnet: Backbone, first: int) -> None:
    set_mode(resnet, first, training=True)
    set_mode(resnet, first, training=False)
    assert not any(module.training for module in resnet.modules())


def test_frozen_keys_are_parameters_and_buffers_below(resnet: Backbone) -> None:
    own = set(resnet.state_dict())
    assert frozen_keys(resnet, 5) == own
    assert frozen_keys(resnet, 0) == set()
    assert own - frozen_keys(resnet, 4) == {name for name in own if name.startswith("model.layer4.")}
    assert "model.bn1.running_mean" in frozen_keys(resnet, 1)


def test_count_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    module[0].requires_grad_(False)
    assert count_parameters(module) == (12, 4)
