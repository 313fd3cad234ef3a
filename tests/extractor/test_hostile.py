"""Exports and checkpoints made to harm: one line, nothing run, nothing read elsewhere."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.extractor.examples import resnet18, transformer
from tests.extractor.test_checkpoint_reader import checkpoint
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import KEY


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    resnet18().save_pretrained(root / "resnet18")
    transformer("vit", "cls").save_pretrained(root / "vit")
    transformer("vit", "mean").save_pretrained(root / "vit-mean")
    return root


def refused(folder: Path) -> str:
    """The one line with which an export is refused."""
    with pytest.raises(UserError) as caught:
        Extractor.from_pretrained(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("resnet18", "model.safetensors"),
        ("vit", "model.safetensors"),
        ("vit-mean", "model.safetensors"),
        ("vit-mean", "head.safetensors"),
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + HEADER,  # a header of 9 exabytes
        struct.pack("<Q", 2**30) + HEADER,
        struct.pack("<Q", len(HEADER)) + HEADER,  # no data
        struct.pack("<Q", 2) + b"{}" + b"left over",
        struct.pack("<Q", 80) + b'{"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}     ',
        struct.pack("<Q", 70) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,0]}}'[:70],
        struct.pack("<Q", 20_000) + b"[" * 20_000,
        b"\x80\x04cos\nsystem\n(S'touch mark'\ntR.",  # a pickle
    ],
)
def test_hostile_safetensors(content: bytes, name: str, case: str, exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports / case, tmp_path / "export")
    (folder / name).write_bytes(content)
    assert name.split(".")[0] in refused(folder) or "weights" in refused(folder)


class Hostile:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickles_under_every_name_are_not_run(exports: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = shutil.copytree(exports / "vit", tmp_path / "export")
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.safetensors", "model.ckpt"):
        torch.save({"vit.layernorm.weight": Hostile(mark)}, folder / name)
        refused(folder)
        (folder / name).unlink()
    torch.save(Hostile(mark), tmp_path / "best.ckpt")
    refused(tmp_path / "best.ckpt")
    assert not mark.exists()


def test_code_beside_the_weights_is_never_followed(exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports / "vit", tmp_path / "export")
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    for extra in (
        code,
        code | {"model_type": "unknown"},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"num_labels": 10**9},  # transformers would name each of them
    ):
        (folder / "config.json").write_text(json.dumps(config | extra))
        assert "config.json has" in refused(folder)
        (folder / "transferkit.json").rename(tmp_path / "record")  # as a plain model directory
        if "model_type" in extra:
            assert "own code" in refused(folder)
        elif "auto_map" in extra:
            assert Extractor.from_pretrained(folder).embed_dim == 32
        (tmp_path / "record").rename(folder / "transferkit.json")
    assert not mark.exists()


def test_a_models_custom_code_is_not_passed_on(tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    extractor.backbone.model.config.auto_map = {"AutoModel": "someone/model--evil.Model"}  # type: ignore[union-attr]
    extractor.save_pretrained(tmp_path / "export")
    assert "auto_map" not in json.loads((tmp_path / "export" / "config.json").read_text())
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "export")).__name__ == "ViTModel"


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no backbone": lambda record: record.pop("backbone"),
    "a list for a backbone": lambda record: record.update(backbone=[1]),
    "a number for a training": lambda record: record.update(training=3),
    "a text among the metrics": lambda record: record["training"].update(metrics={"val/acc": "<b>"}),
    "a list of counts": lambda record: record["training"].update(class_counts=[1]),
    "class names that are none": lambda record: record.update(class_names=[1, 2, 3]),
    "a class too many": lambda record: record["class_names"].append("more"),
    "class names as a text": lambda record: record.update(class_names="abc"),
    "another pooling": lambda record: record["backbone"].update(pooling="none of these"),
    "a preprocessing that is none": lambda record: record["backbone"].update(preprocessing=5),
    "no image size": lambda record: record["backbone"]["preprocessing"].update(crop=[0, -1]),
    "an unknown source": lambda record: record["backbone"].pop("source"),
    "another layout": lambda record: record.update(layout="base"),
}


@pytest.mark.parametrize("case", ["resnet18", "vit"])
@pytest.mark.parametrize("damage", RECORDS)
def test_broken_records(damage: str, case: str, exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports / case, tmp_path / "export")
    record = json.loads((folder / "transferkit.json").read_text())
    RECORDS[damage](record)
    (folder / "transferkit.json").write_text(json.dumps(record))
    if damage == "another layout" and case == "vit":
        assert Extractor.from_pretrained(folder).head is None  # a backbone like any other
    else:
        refused(folder)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("os.system", {}), ("../resnet18", {}), ("resnet18", {"weights": "DEFAULT"}), ("resnet18", {"x": 1})],
)
def test_a_torchvision_model_that_is_none(name: str, arguments: dict[str, Any], exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports / "resnet18", tmp_path / "export")
    record = json.loads((folder / "transferkit.json").read_text())
    record["backbone"] |= {"name": name, "architecture": arguments}
    (folder / "transferkit.json").write_text(json.dumps(record))
    refused(folder)


def test_names_in_a_record_are_no_paths(exports: Path, tmp_path: Path) -> None:
    """The weights are read here, whatever the record calls the model."""
    folder = shutil.copytree(exports / "vit", tmp_path / "export")
    record = json.loads((folder / "transferkit.json").read_text())
    record["backbone"]["name"] = "../../elsewhere"
    record["backbone"]["architecture"]["_name_or_path"] = "/etc/passwd"
    (folder / "transferkit.json").write_text(json.dumps(record))
    opened = Extractor.from_pretrained(folder)
    assert opened.name == "../../elsewhere"
    assert opened.weights_sha256() == Extractor.from_pretrained(exports / "vit").weights_sha256()
    opened.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("case", ["vit", "vit-mean"])
def test_an_index_of_weights_elsewhere_is_not_followed(case: str, exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports / case, tmp_path / "export")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder)


@pytest.mark.parametrize("shape", [(3,), (3, 31), (4, 32), (0, 32)])
def test_a_head_of_another_shape(shape: tuple[int, ...], exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports / "vit-mean", tmp_path / "export")
    save_file({"weight": torch.zeros(shape), "bias": torch.zeros(shape[0])}, folder / "head.safetensors")
    assert "expected (number of classes, 32)" in refused(folder)


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no backbone": lambda content: content[KEY].pop("backbone"),
    "an unknown model type": lambda content: content[KEY]["backbone"]["architecture"].update(model_type="evil"),
    "a text for an architecture": lambda content: content[KEY]["backbone"].update(architecture="x"),
    "no head": lambda content: content["state_dict"].pop("head.weight"),
    "a list for a state": lambda content: content.update(state_dict=[1]),
    "class names that are none": lambda content: content[KEY].update(class_names=[b"x"] * 3),
    "metrics that are none": lambda content: content[KEY].update(metrics=["<b>"]),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_broken_checkpoints(damage: str, tmp_path: Path) -> None:
    content = checkpoint(transformer("vit", "cls"))
    CHECKPOINTS[damage](content)
    torch.save(content, tmp_path / "best.ckpt")
    assert "is broken or of another version" in refused(tmp_path / "best.ckpt")
