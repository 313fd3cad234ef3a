"""State dicts on their way into a module: names, versions of modules, values."""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from tests.backbones.families import CONFIGS, save
from transferkit import backbones
from transferkit.backbones.loading import check_finite, load_state, own_names
from transferkit.errors import UserError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet18() -> State:
    """The state dict of torchvision's ResNet18."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return dict(models.resnet18().state_dict())


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


QUICK = ("vit", "beit", "dinov3_vit", "swin", "resnet", "clip_vision", "mlcd", "levit", "pvt", "segformer")
FAMILIES = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in CONFIGS]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_of_a_directory_gives_what_the_directory_gives(family: str, tmp_path: Path) -> None:
    """Whatever transformers renames on the way; with a prefix as well."""
    save(family, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    torch.save(prefixed(load_file(file), "student.net."), tmp_path / "prefixed.pt")
    own = backbones.build(str(tmp_path / "saved"))
    for weights in (file, tmp_path / "prefixed.pt"):
        given = backbones.build(str(tmp_path / "saved"), str(weights))
        assert given.preprocessing == own.preprocessing
        assert all(torch.equal(value, own.state_dict()[key]) for key, value in given.state_dict().items())


PREFIXES = ("model.", "_orig_mod.", "net.", "backbone.", "module.", "encoder.", "module.model._orig_mod.", "a.b.c.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_and_said(
    resnet18: State, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(prefixed(resnet18, prefix), tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        backbone = backbones.build("resnet18", str(tmp_path / "w.pt"))
    own = backbone.model.state_dict()
    assert all(torch.equal(value, resnet18[key]) for key, value in own.items())
    lines = [record.getMessage() for record in caplog.records if "from the names" in record.getMessage()]
    assert len(lines) == 1
    assert all(f"{part}." in lines[0] for part in prefix.rstrip(".").split("."))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state, "acc": 93.1, "epoch": 199},
        lambda state: {"teacher": prefixed(state, "backbone."), "student": {"conv1.weight": torch.zeros(1)}},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {"state_dict": {**prefixed(state, "backbone.model."), "head.weight": torch.zeros(3, 512)}},
    ],
)
def test_wrappings_of_training_scripts(resnet18: State, tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    torch.save(wrap(resnet18), tmp_path / "w.pt")
    backbone = backbones.build("resnet18", str(tmp_path / "w.pt"))
    assert all(torch.equal(value, resnet18[key]) for key, value in backbone.model.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.", "module.backbone.", "_orig_mod.vit."])
def test_prefixes_before_a_transformers_model(tmp_path: Path, prefix: str) -> None:
    plain = save("vit", tmp_path / "vit")
    torch.save(prefixed(plain.state_dict(), prefix), tmp_path / "w.pt")
    backbone = backbones.build(str(tmp_path / "vit"), str(tmp_path / "w.pt"))
    own = backbone.model.state_dict()
    assert own and all(torch.equal(value, plain.state_dict()[key]) for key, value in own.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: {**prefixed(s, "net."), "odd.weight": torch.zeros(1)}, r"has unexpected tensors odd\.weight"),
        (lambda s: {**prefixed(s, "net."), "net.odd.weight": torch.zeros(1)}, r"has unexpected tensors odd\.weight"),
        (lambda s: prefixed({k: v for k, v in s.items() if k != "bn1.bias"}, "net."), r"lacks tensors bn1\.bias"),
        (lambda s: {**prefixed(s, "q."), **prefixed(s, "k.")}, r"holds weights under k\., q\.; save those of one"),
        (lambda s: {**prefixed(s, "q."), "bn1.bias": s["bn1.bias"]}, r"unexpected tensors bn1\.bias"),
        (lambda s: {"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}}, r"does not hold a state dict"),
    ],
)
def test_what_is_left_over_is_named(
    resnet18: State, tmp_path: Path, make: Callable[[State], Any], message: str
) -> None:
    torch.save(make(resnet18), tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as caught:
        backbones.build("resnet18", str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)


def test_names_that_fit_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """An own module may be called as a wrapper is."""
    own = nn.ModuleDict({"module": nn.Linear(2, 2), "encoder": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    state = dict(own.state_dict())
    with caplog.at_level(logging.WARNING):
        assert own_names(state, state, "w.pt") == state
        assert own_names(prefixed(state, "net."), state, "w.pt") == state
    assert [record.getMessage() for record in caplog.records] == ["removed net. from the names in w.pt"]


@pytest.mark.parametrize("forget", [dict, OrderedDict])
@pytest.mark.parametrize("name", ["mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"])
def test_a_plain_dict_has_lost_the_versions_of_the_modules(name: str, forget: type) -> None:
    """MNASNet's own loading refuses a state without one."""
    plain = models.get_model(name)
    state = forget(plain.state_dict().items())
    with pytest.raises(ValueError, match="version should be set"):
        plain.load_state_dict(state)
    again = models.get_model(name)
    load_state(again, state, "w.pt")
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert again.state_dict()._metadata == plain.state_dict()._metadata


def test_names_of_an_earlier_version_are_translated() -> None:
    """torchvision's published ViTs call the layers of an MLP linear_1 and linear_2, today 0 and 3."""
    plain = models.VisionTransformer(8, 4, 2, 2, 16, 32)
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = {}
    for key, value in plain.state_dict().items():
        for new, earlier in names.items():
            key = key.replace(new, earlier)
        old[key] = value
    again = models.VisionTransformer(8, 4, 2, 2, 16, 32)
    load_state(again, old, "w.pt")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in plain.state_dict().items())


def test_statistics_without_a_count_of_batches() -> None:
    """As before PyTorch 0.4.1."""
    state = {key: value + 1 for key, value in nn.BatchNorm1d(3).state_dict().items() if "num_batches" not in key}
    module = nn.BatchNorm1d(3)
    load_state(module, state, "w.pt")
    assert torch.equal(module.running_mean, torch.ones(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_found(value: float, dtype: torch.dtype) -> None:
    check_finite("w.pt", {"a": torch.full((9,), torch.finfo(dtype).max, dtype=dtype), "b": torch.tensor(3)})
    bad = torch.zeros(3, 3, dtype=dtype)
    bad[1, 2] = value
    with pytest.raises(UserError, match=r"^w\.pt: the tensor b\.weight holds NaN or infinity; give"):
        check_finite("w.pt", {"a": torch.zeros(2), "b.weight": bad})
    both = torch.tensor([float("inf"), -float("inf")])
    with pytest.raises(UserError, match="the tensor c"):
        check_finite("w.pt", {"c": both})


@pytest.mark.parametrize("where", ["file", "directory", "preset"])
def test_weights_of_a_training_that_went_wrong(
    resnet18: State, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = resnet18["layer4.1.bn2.running_var"].clone()
    broken[5] = float("nan")
    state = resnet18 | {"layer4.1.bn2.running_var": broken}
    if where == "directory":
        model = transformers.AutoModel.from_config(CONFIGS["vit"])
        save("vit", tmp_path / "vit")
        model.state_dict()["layernorm.weight"][3] = float("inf")
        save_file(dict(model.state_dict()), tmp_path / "vit" / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=r"vit: the tensor layernorm.weight holds NaN or infinity"):
            backbones.build(str(tmp_path / "vit"), pooling="pooler")
        return
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "resnet18-f37072fd.pth")
    weights = str(folder / "resnet18-f37072fd.pth") if where == "file" else "DEFAULT"
    with pytest.raises(UserError, match=r"f37072fd.pth: the tensor layer4.1.bn2.running_var holds NaN or infinity"):
        backbones.build("resnet18", weights)


def other(state: State) -> State:
    """Another network of the same shape."""
    return {key: value + 1 for key, value in state.items()}


def numbered(state: State, prefix: str) -> State:
    """A ResNet as an ``nn.Sequential`` of its children, without the classifier: fastai's and lightly's way."""
    with torch.random.fork_rng():
        body = nn.Sequential(*list(models.resnet18().children())[:-1])
    names = list(dict.fromkeys(key.split(".")[0] for key in state if not key.startswith("fc.")))
    places = dict(zip(names, ["0", "1", "4", "5", "6", "7"], strict=True))
    given = {f"{places[key.split('.')[0]]}.{key.partition('.')[2]}": state[key] for key in state if key[:3] != "fc."}
    assert given.keys() == body.state_dict().keys()
    return prefixed(given, prefix)


@pytest.mark.parametrize(
    ("wrap", "lines"),
    [
        (
            lambda s: {
                "state_dict": {
                    **prefixed(s, "module.encoder_q."),
                    **prefixed(other(s), "module.encoder_k."),
                    "module.queue": torch.zeros(3, 4),
                    "module.queue_ptr": torch.zeros(1, dtype=torch.long),
                }
            },
            ["removed module. and encoder_q. from the names", "left out encoder_k.", "dropped queue, queue_ptr"],
        ),
        (
            lambda s: {
                **prefixed(s, "base_encoder."),
                **prefixed({k: v + 1 for k, v in s.items()}, "momentum_encoder."),
            },
            ["removed base_encoder.", "left out momentum_encoder."],
        ),
        (
            lambda s: {
                "student": prefixed(other(s), "module.backbone."),
                "teacher": {**prefixed(s, "backbone."), "head.mlp.0.weight": torch.zeros(2, 2)},
            },
            ["took 'teacher'", "removed backbone.", "dropped head.mlp.0.weight"],
        ),
        (
            lambda s: {
                **prefixed(s, "backbone."),
                **prefixed(other(s), "backbone_momentum."),
                "projection_head.layers.0.weight": torch.zeros(2, 2),
            },
            ["removed backbone.", "left out backbone_momentum.", "dropped projection_head.layers.0.weight"],
        ),
        (  # a Lightning module's checkpoint
            lambda s: {
                "state_dict": prefixed(s, "model."),
                "epoch": 3,
                "hyper_parameters": {"lr": 0.1},
                "callbacks": {},
            },
            ["removed model."],
        ),
        (
            lambda s: {"model": {**numbered(s, "0."), "1.2.weight": torch.zeros(3), "1.8.weight": torch.zeros(3, 3)}},
            ["took the numbers in the names", "dropped 1.2.weight, 1.8.weight"],
        ),
        (
            lambda s: {
                "state_dict": {**numbered(s, "backbone."), "projection_head.layers.0.weight": torch.zeros(2, 2)}
            },
            ["took the numbers in the names", "dropped projection_head.layers.0.weight"],
        ),
    ],
    ids=["MoCo", "MoCo v3", "DINO", "lightly's momentum", "Lightning", "fastai", "lightly"],
)
def test_files_of_training_libraries(
    resnet18: State, tmp_path: Path, wrap: Callable[[State], Any], lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(wrap(resnet18), tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        backbone = backbones.build("resnet18", str(tmp_path / "w.pt"))
    assert all(torch.equal(value, resnet18[key]) for key, value in backbone.model.state_dict().items())
    for line in lines:
        assert line in caplog.text


def test_weights_in_several_files(resnet18: State, tmp_path: Path) -> None:
    halves = [dict(list(resnet18.items())[::2]), dict(list(resnet18.items())[1::2])]
    index = {key: f"model-{number}.safetensors" for number, half in enumerate(halves) for key in half}
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"model-{number}.safetensors")
    place = tmp_path / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": index}))
    for source in (place, tmp_path):
        backbone = backbones.build("resnet18", str(source))
        assert all(torch.equal(value, resnet18[key]) for key, value in backbone.model.state_dict().items())
    for content, message in (
        ("{", "is not an index of weights"),
        (
            json.dumps({"weight_map": index | {"fc.bias": "../w.safetensors"}}),
            r"lists '\.\./w\.safetensors', which is not",
        ),
        (json.dumps({"weight_map": index | {"odd": "model-0.safetensors"}}), "in none of its files: 'odd'"),
    ):
        place.write_text(content)
        with pytest.raises(UserError, match=message):
            backbones.build("resnet18", str(place))
