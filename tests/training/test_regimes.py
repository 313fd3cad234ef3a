import pytest
import torch
from torch import nn

from tests.backbones.families import CONFIGS, make
from tests.tiny import VIT
from transferkit.backbones import Backbone, build
from transferkit.backbones.from_transformers import TransformersBackbone
from transferkit.errors import UserError
from transferkit.images.preprocessing import Preprocessing
from transferkit.training.regimes import Regime, count_parameters, first_trainable, freeze, frozen_keys, set_mode

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
    with pytest.raises(UserError, match=f"`unfreeze_last` is {last}, resnet18 has 5 stages .*give 1 to 5"):
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


def without_gradient(backbone: Backbone) -> set[str]:
    """Names of the parameters whose ``grad`` a backward pass in training mode leaves at None."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    backbone.train()
    size = backbone.preprocessing.image_size
    backbone(torch.randn(2, 3, *size)).square().sum().backward()
    return {name for name, parameter in backbone.model.named_parameters() if parameter.grad is None}


def transformer(family: str, pooling: str | None = None) -> TransformersBackbone:
    size = getattr(CONFIGS[family], "image_size", 32)
    return TransformersBackbone(family, make(family), Preprocessing.vit().replace(image_size=size), pooling)


@pytest.mark.parametrize("family", CONFIGS)
def test_what_no_gradient_reaches_does_not_learn(family: str) -> None:
    backbone = transformer(family)
    idle = without_gradient(backbone)
    freeze(backbone, 0)
    assert {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad} == idle
    sizes = {name: parameter.numel() for name, parameter in backbone.model.named_parameters()}
    total, learning = count_parameters(backbone)
    assert (total, learning) == (sum(sizes.values()), sum(n for name, n in sizes.items() if name not in idle))


@pytest.mark.parametrize(
    ("family", "pooling", "idle"),
    [
        ("dinov2", "cls", "embeddings.mask_token"),
        ("dinov3_vit", "cls", "embeddings.mask_token"),
        ("clip_vision", "mean", "post_layernorm.weight"),
    ],
)
def test_known_parameters_that_no_gradient_reaches(family: str, pooling: str, idle: str) -> None:
    backbone = transformer(family, pooling)
    freeze(backbone, 0)
    still = {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad}
    assert any(name.endswith(idle) for name in still), still


def test_every_parameter_of_torchvision_models_learns() -> None:
    for name in ("squeezenet1_1", "googlenet", "mnasnet0_5"):
        backbone = build(name, "none", preprocessing={"image_size": 64})
        freeze(backbone, 0)
        assert all(parameter.requires_grad for parameter in backbone.parameters()), name


def test_finding_them_changes_nothing_and_a_frozen_backbone_is_not_run(
    resnet: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    generator = torch.get_rng_state()
    freeze(resnet, 0)
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert all(parameter.grad is None for parameter in resnet.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    monkeypatch.setattr(type(resnet), "forward", None)
    freeze(resnet, 5)


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
