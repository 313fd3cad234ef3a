"""Exported directories, opened with plain torchvision and transformers, and by transferkit again."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from tests.extractor.examples import CLASSES, resnet18, transformer, with_head
from transferkit import backbones
from transferkit.errors import UserError
from transferkit.extractor import Extractor

FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "transferkit.json"}
CASES = {
    "resnet18-avg": (lambda: resnet18(), "classifier"),
    "resnet18-logits": (lambda: resnet18("logits"), "base"),
    "resnet18-avg-l2": (lambda: resnet18(l2_normalize=True), "base"),
    "vit-cls": (lambda: transformer("vit", "cls"), "classifier"),
    "vit-mean": (lambda: transformer("vit", "mean"), "base"),
    "vit-cls+mean": (lambda: transformer("vit", "cls+mean"), "base"),
    "vit-pooler": (lambda: transformer("vit", "pooler"), "base"),
    "vit-cls-l2": (lambda: transformer("vit", "cls", l2_normalize=True), "base"),
    "dinov2-cls": (lambda: transformer("dinov2", "cls"), "base"),
    "dinov2-cls+mean": (lambda: transformer("dinov2", "cls+mean"), "classifier"),
    "beit-pooler": (lambda: transformer("beit", "pooler"), "classifier"),
    "swin-mean": (lambda: transformer("swin", "mean"), "classifier"),
    "swin-pooler": (lambda: transformer("swin", "pooler"), "classifier"),
}


def pixels(extractor: Extractor, photos: list[Tensor]) -> Tensor:
    return torch.stack([extractor.preprocessing(photo) for photo in photos])


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str, photos: list[Tensor], tmp_path: Path) -> None:
    make, layout = CASES[case]
    extractor = make()
    before = extractor.embed(photos)
    extractor.save_pretrained(tmp_path / "export")
    torch.testing.assert_close(extractor.embed(photos), before, atol=0, rtol=0)  # saving changes nothing
    again = Extractor.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(again.embed(photos), before, atol=1e-5, rtol=0)
    assert extractor.head is not None
    assert again.head is not None
    assert torch.equal(again.head.weight, extractor.head.weight)
    assert torch.equal(again.head.bias, extractor.head.bias)
    for attribute in ("name", "pooling", "embed_dim", "class_names", "preprocessing", "l2_normalize"):
        assert getattr(again, attribute) == getattr(extractor, attribute), attribute
    assert again.weights_sha256() == extractor.weights_sha256()
    assert (before[0] - before[1]).abs().max() > 1e-3, "a model that says the same of all images"
    files = {path.name for path in (tmp_path / "export").iterdir()}
    assert files == FILES | ({"head.safetensors"} if layout == "base" else set())
    assert len({path.stat().st_mode for path in (tmp_path / "export").iterdir()}) == 1, "all for the same readers"
    record = json.loads((tmp_path / "export" / "transferkit.json").read_text())
    assert record["layout"] == layout
    assert record["training"] == {
        "regime": "full",
        "class_counts": {"ant": 3},
        "metrics": {"val/acc": 0.5},
    }
    again.save_pretrained(tmp_path / "twice")
    for name in sorted(files - {"transferkit.json"}):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "export" / name).read_bytes(), name


@torch.no_grad()
def test_torchvision_loads_resnet18_strictly(photos: list[Tensor], tmp_path: Path) -> None:
    extractor = resnet18()
    extractor.save_pretrained(tmp_path / "export")
    model = models.resnet18(num_classes=3).eval()
    model.load_state_dict(load_file(tmp_path / "export" / "model.safetensors"), strict=True)
    assert extractor.head is not None
    batch = pixels(extractor, photos)
    torch.testing.assert_close(model(batch), extractor.head(extractor.embed(photos)), atol=1e-5, rtol=0)
    model.fc = nn.Identity()
    torch.testing.assert_close(model(batch), extractor.embed(photos), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert config["id2label"] == {"0": "ant", "1": "bee", "2": "wasp"}
    assert config["arguments"] == {"num_classes": 3}


@torch.no_grad()
def test_torchvision_loads_resnet18_with_its_1000_logits(photos: list[Tensor], tmp_path: Path) -> None:
    extractor = resnet18("logits")
    extractor.save_pretrained(tmp_path / "export")
    model = models.resnet18().eval()
    model.load_state_dict(load_file(tmp_path / "export" / "model.safetensors"), strict=True)
    embedding = model(pixels(extractor, photos))
    torch.testing.assert_close(embedding, extractor.embed(photos), atol=1e-5, rtol=0)
    head = load_file(tmp_path / "export" / "head.safetensors")
    assert extractor.head is not None
    oracle = extractor.head(extractor.embed(photos))
    torch.testing.assert_close(embedding @ head["weight"].T + head["bias"], oracle, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("resnet18")])
def test_transformers_loads_it_with_no_tensor_missing_or_invented(
    case: str, photos: list[Tensor], tmp_path: Path
) -> None:
    make, layout = CASES[case]
    extractor = make()
    extractor.save_pretrained(tmp_path / "export")
    assert extractor.head is not None
    batch, embedding = pixels(extractor, photos), extractor.embed(photos)
    pooler = {} if case.startswith("dinov2") else {"add_pooling_layer": extractor.pooling == "pooler"}
    base, report = transformers.AutoModel.from_pretrained(tmp_path / "export", output_loading_info=True, **pooler)
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) <= {"classifier.weight", "classifier.bias"}
    output = base.eval()(pixel_values=batch)
    hidden = output.last_hidden_state
    start = 0 if case.startswith("swin") else 1
    oracle = {"cls": hidden[:, 0], "mean": hidden[:, start:].mean(1), "pooler": output.pooler_output}
    oracle["cls+mean"] = torch.cat((oracle["cls"], oracle["mean"]), 1)
    torch.testing.assert_close(oracle[extractor.pooling], embedding, atol=1e-5, rtol=0)
    if layout == "base":
        return
    model, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(model.eval()(pixel_values=batch).logits, extractor.head(embedding), atol=1e-5, rtol=0)
    assert [model.config.id2label[index] for index in range(3)] == CLASSES
    assert model.config.label2id == {name: index for index, name in enumerate(CLASSES)}


def test_auto_image_processor_gives_the_same_pixels(photos: list[Tensor], tmp_path: Path) -> None:
    """A ViT's to 1e-6; a ResNet's, whose arithmetic is torchvision's, within one grey level."""
    for extractor, levels in ((transformer("vit", "cls"), 0), (resnet18(), 1)):
        folder = tmp_path / extractor.name.replace("/", "-")
        extractor.save_pretrained(folder)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        ours = pixels(extractor, photos)
        theirs = torch.cat([processor(photo, return_tensors="pt")["pixel_values"] for photo in photos])
        std = torch.tensor(extractor.preprocessing.std)[:, None, None]
        assert ((ours - theirs) * std * 255).abs().max() <= levels + 1e-3


def test_an_extractor_without_a_head(photos: list[Tensor], tmp_path: Path) -> None:
    for extractor in (resnet18(), transformer("vit", "cls")):
        extractor.head, extractor.class_names = None, []
        folder = tmp_path / extractor.name.replace("/", "-")
        extractor.save_pretrained(folder)
        again = Extractor.from_pretrained(folder)
        assert again.head is None
        torch.testing.assert_close(again.embed(photos), extractor.embed(photos), atol=1e-5, rtol=0)
        assert {path.name for path in folder.iterdir()} == FILES


def test_squeezenet_whose_classifier_is_no_linear_layer(photos: list[Tensor], tmp_path: Path) -> None:
    backbone = backbones.build("squeezenet1_1", "none")
    extractor = with_head(backbone, backbone.preprocessing.replace(image_size=64))
    extractor.save_pretrained(tmp_path / "export")
    assert (tmp_path / "export" / "head.safetensors").is_file()
    again = Extractor.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(again.embed(photos), extractor.embed(photos), atol=1e-5, rtol=0)


PLAIN = """
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "transferkit":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file
from torchvision.models import resnet18
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

try:
    import transferkit
except ImportError:
    pass
else:
    raise SystemExit("transferkit can be imported")
image = torch.load("image.pt")
out = {}
model = resnet18(num_classes=3).eval()
model.load_state_dict(load_file("resnet/model.safetensors"))
with torch.inference_mode():
    out["resnet"] = model(torch.load("resnet.pt"))
    pixels = AutoImageProcessor.from_pretrained("vit")(image, return_tensors="pt")
    classifier = AutoModelForImageClassification.from_pretrained("vit").eval()
    out["logits"] = classifier(**pixels).logits
    base = AutoModel.from_pretrained("vit", add_pooling_layer=False).eval()
    out["cls"] = base(**pixels).last_hidden_state[:, 0]
out["label"] = classifier.config.id2label[int(out["logits"].argmax())]
torch.save(out, "out.pt")
"""


def test_plain_libraries_open_it_where_transferkit_cannot_be_imported(photos: list[Tensor], tmp_path: Path) -> None:
    resnet, vit = resnet18(), transformer("vit", "cls")
    resnet.save_pretrained(tmp_path / "resnet")
    vit.save_pretrained(tmp_path / "vit")
    torch.save(photos[0], tmp_path / "image.pt")
    torch.save(pixels(resnet, photos[:1]), tmp_path / "resnet.pt")
    subprocess.run(
        [sys.executable, "-c", PLAIN],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    out = torch.load(tmp_path / "out.pt")
    assert resnet.head is not None
    assert vit.head is not None
    with torch.inference_mode():
        logits = vit.head(vit.embed(photos[:1]))
        oracle = {"resnet": resnet.head(resnet.embed(photos[:1])), "logits": logits, "cls": vit.embed(photos[:1])}
    for name, value in oracle.items():
        torch.testing.assert_close(out[name], value, atol=1e-5, rtol=0)
    assert out["label"] == CLASSES[int(logits.argmax())]


def test_an_existing_directory_is_refused_or_replaced_whole(
    photos: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, folder = transformer("vit", "cls"), transformer("vit", "mean"), tmp_path / "export"
    old.save_pretrained(folder)
    with pytest.raises(UserError, match="exists; choose another place or add `overwrite=True`"):
        new.save_pretrained(folder)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("transferkit.extractor.pretrained.write_json", fail)  # the model is written by then
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(folder, overwrite=True)
    assert torch.equal(Extractor.from_pretrained(folder).embed(photos), old.embed(photos))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    new.save_pretrained(folder, overwrite=True)
    assert Extractor.from_pretrained(folder).pooling == "mean"
    assert {path.name for path in folder.iterdir()} == {*FILES, "head.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_is_no_export_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"photos holds something else than an export \(no transferkit\.json\)"):
        transformer("vit", "cls").save_pretrained(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file/export: "):
        transformer("vit", "cls").save_pretrained(tmp_path / "file" / "export")


@pytest.mark.parametrize("family", ["vit", "resnet18"])
def test_a_full_disk(tmp_path: Path, family: str) -> None:
    extractor = resnet18() if family == "resnet18" else transformer("vit", "cls")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*/export: .*free disk space"):
            extractor.save_pretrained(tmp_path / "export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_options_that_contradict_an_export(tmp_path: Path) -> None:
    transformer("vit", "cls").save_pretrained(tmp_path / "export")
    folder = str(tmp_path / "export")
    with pytest.raises(UserError, match="was exported with pooling cls, not mean"):
        Extractor.from_pretrained(folder, pooling="mean")
    with pytest.raises(UserError, match='has its own weights; leave out `weights="none"`'):
        Extractor.from_pretrained(folder, weights="none")
    with pytest.raises(UserError, match="has its own architecture"):
        Extractor.from_pretrained(folder, architecture={"hidden_size": 8})
    assert Extractor.from_pretrained(folder, preprocessing={"image_size": 48}).preprocessing.image_size == (48, 48)


@pytest.mark.parametrize("family", ["vit", "resnet18"])
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("transferkit.json", "{", "transferkit.json cannot be read"),
        ("transferkit.json", "[1]", "transferkit.json cannot be read: not a JSON object"),
        ("transferkit.json", '{"format": 99}', "has format 99, this version reads 1; update transferkit"),
        ("transferkit.json", '{"format": 1}', "is incomplete: no 'pooling'; export the extractor again"),
        ("model.safetensors", "nothing", "not a weights file|cannot be used"),
        ("model.safetensors", None, "does not exist|has no usable weights"),
        ("model.safetensors", "tensors", "lacks tensors"),
    ],
)
def test_damaged_exports_get_one_line(tmp_path: Path, family: str, name: str, damage: str | None, message: str) -> None:
    extractor = resnet18() if family == "resnet18" else transformer("vit", "cls")
    extractor.save_pretrained(tmp_path / "export")
    path = tmp_path / "export" / name
    if damage is None:
        path.unlink()
    elif damage == "tensors":
        key = "vit.layernorm.weight" if family == "vit" else "conv1.weight"
        state = load_file(path)
        del state[key]
        save_file(state, path, {"format": "pt"})
    else:
        path.write_text(damage)
    with pytest.raises(UserError, match=message) as caught:
        Extractor.from_pretrained(tmp_path / "export")
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model directory \(it has no config.json\)"):
        Extractor.from_pretrained(tmp_path)
