"""What `models` lists is what the libraries build; names are found by a part or a pattern."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from tests.backbones import known_table
from tests.backbones.published import CONFIGS
from transferkit.backbones import build, catalog, from_torchvision
from transferkit.backbones.catalog import describe, find_models, matches
from transferkit.backbones.known_models import FILE, KnownModel, known_models, release_of_timm
from transferkit.backbones.model_class import model_class

KNOWN = {model.name: model for model in known_models()}
LIBRARIES = ["torchvision", "transformers", "timm"]
SMALL = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"]
LARGE = sorted(name for name in from_torchvision.names() if name not in SMALL and KNOWN[name].parameters < 5e7)  # type: ignore[operator]
TIMM = sorted(name for name in KNOWN if KNOWN[name].library == "timm")
QUICK = ["test_vit.r160_in1k", "test_efficientnet.r160_in1k", "test_convnext.r160_in1k"]
FEW = ["google/vit-base-patch16-224", "openai/clip-vit-large-patch14", "facebook/dinov3-vits16-pretrain-lvd1689m"]


def test_all_of_torchvision_is_listed_with_its_published_parameters() -> None:
    listed = {name for name, model in KNOWN.items() if model.library == "torchvision"}
    assert listed == set(from_torchvision.names())
    counts = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in listed}
    assert {name: KNOWN[name].parameters for name in listed} == counts


@torch.no_grad()
@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_torchvision_has_the_width_size_and_poolings(name: str) -> None:
    backbone = build(name, "none")
    assert (backbone.embed_dim, backbone.poolings) == (KNOWN[name].embed_dim, KNOWN[name].poolings)
    assert models.get_model_weights(name).DEFAULT.transforms().crop_size == [KNOWN[name].image_size]
    assert build(name, "none", "logits").embed_dim == len(models.get_model_weights(name).DEFAULT.meta["categories"])


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_builds_the_same_number_of_parameters(name: str) -> None:
    choice = model_class(name, CONFIGS[name], None)
    with torch.device("meta"):
        model: Any = choice.kind(choice.config, **choice.options)
    assert sum(tensor.numel() for tensor in model.parameters()) == KNOWN[name].parameters
    assert KNOWN[name].words == (choice.dual is not None)
    width = getattr(choice.config, "hidden_size", None) or choice.config.hidden_sizes[-1]
    assert width == KNOWN[name].embed_dim


def test_every_known_model_of_transformers_has_its_published_configuration() -> None:
    assert {name for name, model in KNOWN.items() if model.library == "transformers"} == set(CONFIGS)


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS)])
def test_poolings_of_transformers(name: str) -> None:
    assert known_table.of_transformers(name) == KNOWN[name]


@torch.no_grad()
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in TIMM[7::60])])
def test_timm_builds_the_same(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta" if name not in QUICK else "cpu"):
        model = timm.create_model(name).eval()
        features = model.forward_features(torch.zeros(1, *model.pretrained_cfg["input_size"]))
        pooled = model.forward_head(features, pre_logits=True)
    known = KNOWN[name]
    assert known.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert (known.embed_dim, known.image_size) == (pooled.flatten(1).shape[1], max(model.pretrained_cfg["input_size"]))
    assert ("cls" in known.poolings) == (model.num_prefix_tokens > 0 if hasattr(model, "num_prefix_tokens") else False)


@pytest.mark.slow
def test_the_table_of_timm_is_what_its_release_builds() -> None:
    timm = pytest.importorskip("timm")
    if timm.__version__ == release_of_timm():
        refused = set(timm.list_pretrained()) - set(TIMM)
        assert set(TIMM) < set(timm.list_pretrained()) and all("_enc." in name for name in refused)
        assert describe(min(refused)) is None
    names = [name for name in TIMM[::40] if name in timm.list_pretrained()]
    assert [describe(name) for name in names] == [KNOWN[name] for name in names]


def test_the_table_is_written_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_table, "FILE", tmp_path / "known_models.csv")
    monkeypatch.setattr(known_table, "rows", lambda: iter(known_models()))
    monkeypatch.setattr("timm.__version__", release_of_timm())
    known_table.main()
    assert (tmp_path / "known_models.csv").read_bytes() == FILE.read_bytes()
    assert [(model.library, model.name) for model in known_models()] == sorted(
        ((model.library, model.name) for model in known_models()), key=lambda row: (LIBRARIES.index(row[0]), row[1])
    )


@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("google/siglip2-base-patch16-224", "SigLIP2", True),
        ("google/siglip2-base-patch16-224", "google/*224", True),
        ("google/siglip2-base-patch16-224", "siglip2*", False),
        ("resnet18", None, True),
    ],
)
def test_a_pattern(name: str, pattern: str | None, found: bool) -> None:
    assert matches(name, pattern) == found


def test_every_column_is_known_for_every_model() -> None:
    many = [model for model in find_models("vit_") if model.library == "timm"]
    assert len(many) > 100 and all(None not in model and model.poolings for model in many)
    assert {model.library for model in find_models()} == {"torchvision", "transformers"}


def test_models_of_another_release_of_timm_are_built_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = KNOWN[QUICK[0]]
    monkeypatch.setattr(catalog, "release_of_timm", lambda: "0.1")
    assert find_models(QUICK[0]) == [expected]
    monkeypatch.setattr(catalog, "known_models", tuple)
    assert find_models(QUICK[0]) == [expected]
    many = find_models("vit_base")
    assert len(many) > catalog.MOST_BUILT
    assert set(many) == {KnownModel(model.name, "timm", None, None, None, ()) for model in many}


def test_without_timm_its_models_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert {model.library for model in find_models("resnet")} == {"torchvision", "transformers"}
