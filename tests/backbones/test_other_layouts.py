"""What is in the layout of another library gets one line: what it is, and what opens instead."""

import json
from pathlib import Path

import httpx
import pytest
from huggingface_hub import errors

from tests.backbones.families import make, processor
from transferkit import backbones
from transferkit.backbones import hub_faults
from transferkit.backbones.other_layouts import other_layout
from transferkit.errors import UserError

FOLDERS = [
    (["model_index.json", "unet/config.json", "vae/config.json"], "is a pipeline of diffusers; give a model of images"),
    (["adapter_config.json", "adapter_model.safetensors"], r"is an adapter without its model \(owner/vit\); merge it"),
    (["onnx/model.onnx", "README.md"], "is a model in ONNX alone; give the model that it was exported from"),
    (["model.onnx"], "is a model in ONNX alone"),
    (
        ["open_clip_config.json", "open_clip_model.safetensors"],
        "is a model of OpenCLIP; give one of",
    ),
    (["modules.json", "0_CLIPModel/config.json"], "is a model of sentence-transformers; give .*/0_CLIPModel$"),
    (["vit-f16.gguf"], "is a model in GGUF alone"),
    (["README.md"], r"is not a model directory \(it has no config.json\)"),
]


@pytest.mark.parametrize(("files", "message"), FOLDERS)
def test_folders(files: list[str], message: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps({"base_model_name_or_path": "owner/vit"}))
    with pytest.raises(UserError, match=f"^{tmp_path} {message}") as caught:
        backbones.build(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("onnx/model.onnx", "is a model in ONNX alone"),
        ("tf_model.h5", "is a model of TensorFlow alone"),
        ("flax_model.msgpack", "is a model of Flax alone"),
        (None, "has no usable weights"),
    ],
)
def test_folders_with_a_configuration(file: str | None, message: str, tmp_path: Path) -> None:
    model = make("vit")
    model.config.save_pretrained(tmp_path)
    processor(model, "vit").save_pretrained(tmp_path)
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"weights")
    with pytest.raises(UserError, match=f"^{tmp_path} {message}") as caught:
        backbones.build(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_repositories_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files are listed where one is missing that every model has."""
    listed = {
        "owner/pipeline": ["model_index.json"],
        "owner/vit": ["config.json"],
        "owner/PE": ["config.yaml", "PE-Core-B16-224.pt"],
    }
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda place, revision: listed[place])
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
    missing = errors.RemoteEntryNotFoundError("404 Client Error.", response=response)
    found = hub_faults.hub_fault("owner/pipeline", "configuration", missing)
    assert str(found).startswith("owner/pipeline is a pipeline of diffusers; give a model of images")
    found = hub_faults.hub_fault("owner/PE", "configuration", missing)
    assert str(found).startswith("owner/PE is in no layout of transformers or timm (it has no config.json); give")
    for name in ("owner/vit", "owner/unknown"):
        assert "could not be downloaded" in str(hub_faults.hub_fault(name, "configuration", missing))


def test_a_model_that_opens_is_none_of_them() -> None:
    assert other_layout(["config.json", "model.safetensors", "preprocessor_config.json"]) is None
