"""``transferkit export``: what it prints, what it takes, what it refuses."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.extractor.examples import resnet18, transformer
from tests.extractor.test_checkpoint_reader import checkpoint
from tests.running import transferkit
from transferkit.extractor import Extractor
from transferkit.extractor.checkpoint_reader import KEY


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run ``ants/0`` with both checkpoints, in the working directory; ``best`` is a ViT, ``last`` another."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/ants/0/checkpoints")
    folder.mkdir(parents=True)
    for name, pooling in (("best", "cls"), ("last", "mean")):
        torch.save(checkpoint(transformer("vit", pooling)), folder / f"{name}.ckpt")
    return folder


def test_a_checkpoint_becomes_a_directory(run: Path) -> None:
    done = transferkit("export", str(run / "best.ckpt"), "--out", "export")
    assert done.status == 0, done.err
    files = {path.name for path in Path("export").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "transferkit.json"}
    assert all(name in done.out for name in files) and "model card" in done.out
    assert "written: export\n" in done.err
    assert "next: transferkit embed IMAGES --extractor export --out embeddings.parquet\n" in done.err
    assert Extractor.from_pretrained("export").pooling == "cls"


@pytest.mark.parametrize(("which", "pooling"), [("best", "cls"), ("last", "mean")])
@pytest.mark.parametrize("options", [[], ["--name", "ants"]])
def test_best_and_last_of_a_run(run: Path, which: str, pooling: str, options: list[str]) -> None:
    done = transferkit("export", which, *options, "--out", "export", "--json")
    assert done.status == 0, done.err
    assert f"exported: {run / which}.ckpt\n" in done.err
    found = json.loads(done.out)
    assert found["out"] == "export" and found["onnx_difference"] is None
    assert found["bytes"]["model.safetensors"] == Path("export/model.safetensors").stat().st_size
    assert Extractor.from_pretrained("export").pooling == pooling


def test_a_backbone_by_name_and_an_export_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = transferkit("export", "resnet18", "--weights", "none", "--pooling", "logits", "--out", "export")
    assert done.status == 0, done.err
    assert "| started from | resnet18 (none) |" in Path("export/README.md").read_text(encoding="utf-8")
    assert transferkit("export", "export", "--out", "again").status == 0
    assert Path("again/model.safetensors").read_bytes() == Path("export/model.safetensors").read_bytes()
    assert Path("again/README.md").read_text(encoding="utf-8") == Path("export/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_onnx_in_the_directory(run: Path) -> None:
    done = transferkit("export", "best", "--onnx", "--out", "export")
    assert done.status == 0, done.err
    assert "model.onnx" in done.out
    assert " on batches of 1, 3 and 17 random images, top class the same\n" in done.err
    assert "### ONNX Runtime" in Path("export/README.md").read_text(encoding="utf-8")


def refused(*arguments: str) -> str:
    """The one line with which a command ends."""
    before = sorted(Path().rglob("*"))
    done = transferkit("export", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("transferkit: error: ") and done.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before, "something was written"
    return done.err


def test_an_existing_directory(run: Path) -> None:
    assert transferkit("export", "best", "--out", "export").status == 0
    assert "export exists; choose another place or add --overwrite" in refused("last", "--out", "export")
    assert Extractor.from_pretrained("export").pooling == "cls"
    assert transferkit("export", "last", "--out", "export", "--overwrite").status == 0
    assert Extractor.from_pretrained("export").pooling == "mean"
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]
    Path("photos").mkdir()
    Path("photos/holiday.jpg").touch()
    line = refused("best", "--out", "photos", "--overwrite")
    assert "photos holds something else than an export (no transferkit.json)" in line
    assert "holds something else than an export" in refused("best", "--out", str(run / "best.ckpt"), "--overwrite")


def test_what_cannot_be_exported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no run with a checkpoint in runs/bees; fit first" in refused("best", "--name", "bees")
    assert "checkpoint no.ckpt does not exist" in refused("no.ckpt")
    assert "unknown backbone 'resnet81'" in refused("resnet81")
    Path("empty").mkdir()
    assert "./empty is not a model directory (it has no config.json)" in refused("./empty")
    content = checkpoint(transformer("vit", "cls"))
    content[KEY]["complete"] = False
    torch.save(content, run / "last.ckpt")
    line = refused("last")
    assert "runs/ants/0/checkpoints/last.ckpt was written by an earlier version during a fit" in line
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "--onnx needs onnxruntime, which cannot be imported: pip install 'transferkit[onnx]'" in refused(
        "best", "--onnx", "--out", "export"
    )


def test_a_place_that_cannot_be_written(run: Path) -> None:
    Path("file").touch()
    assert "cannot write file/export: File exists" in refused("best", "--out", "file/export")
    assert "cannot write /proc/export: " in refused("best", "--out", "/proc/export")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_place(run: Path) -> None:
    Path("locked").mkdir(mode=0o555)
    assert "cannot write locked/export: Permission denied" in refused("best", "--out", "locked/export")


def test_resnet18_has_labels_in_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(resnet18()), "best.ckpt")
    assert transferkit("export", "best.ckpt", "--out", "export").status == 0
    assert json.loads(Path("export/config.json").read_text())["id2label"] == {"0": "ant", "1": "bee", "2": "wasp"}
