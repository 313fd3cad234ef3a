"""``distill`` from Python: a run that resumes exactly, and a student that its library opens with the same numbers."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import resnet18
from transformers import AutoModel

from tests.tiny import VIT
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.training import distill_module
from transferkit.training.distilling import distill
from transferkit.training.run import Run

SIZES = {"image_size": 32, "teacher_size": 32}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, and a smaller transformer as student; random weights."""
    place = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, width in (("teacher", 32), ("student", 16)):
        architecture = {**VIT["architecture"], "hidden_size": width}
        Extractor.from_pretrained(VIT["backbone"], "none", None, {"image_size": 32}, architecture).save_pretrained(
            place / name
        )
    return place


@pytest.fixture(autouse=True)
def own_environment(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone after it
        monkeypatch.delenv(name)


def pictures(count: int = 21) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8))


def small(networks: Path, **more: Any) -> dict[str, Any]:
    """Options of a distillation that takes a second."""
    own = {"teacher": str(networks / "teacher"), "student": str(networks / "student"), "accelerator": "cpu"}
    return {**own, "epochs": 3, "views": 2, "batch_size": 8, "num_workers": 0, "lr": 1e-2, **more}


def rows_of(run: Run) -> list[dict[str, str]]:
    """The rows of metrics.csv, without times."""
    with (run.path / "metrics.csv").open() as file:
        return [{name: cell for name, cell in row.items() if name != "epoch_time"} for row in csv.DictReader(file)]


def test_a_run_that_was_cut_ends_like_one_left_alone(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(pictures(), out=tmp_path, name="whole", **small(networks))
    rows = rows_of(whole)
    losses, cosines = ([float(row[name]) for row in rows] for name in ("val/loss", "val/cosine"))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and losses[-1] < losses[0]
    assert whole.metrics["val/cosine"] == pytest.approx(max(cosines)) and math.isfinite(whole.metrics["train/loss"])
    epoch_end = distill_module.DistillModule.on_train_epoch_end

    def fail_in_the_second(module: Any) -> None:
        if module.current_epoch == 1:
            raise OSError("the machine failed")
        epoch_end(module)

    with monkeypatch.context() as patch:
        patch.setattr(distill_module.DistillModule, "on_train_epoch_end", fail_in_the_second)
        with pytest.raises(OSError, match="the machine failed"):
            distill(pictures(), out=tmp_path, name="cut", **small(networks))
    cut = distill(pictures(), out=tmp_path, name="cut", ckpt_path="last", **small(networks))
    assert cut.path == tmp_path / "runs/cut/0" and rows_of(cut) == rows
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (torch.load(run.path / "checkpoints" / name, weights_only=True) for run in (whole, cut))
        assert one["state_dict"].keys() == other["state_dict"].keys()
        assert all(torch.equal(tensor, other["state_dict"][key]) for key, tensor in one["state_dict"].items())
    extractor = cut.extractor
    assert extractor.head is None and extractor.record["regime"] == "distill" and extractor.record["teacher"]
    extractor.save_pretrained(tmp_path / "export")
    exported = Extractor.from_pretrained(tmp_path / "export")
    images = pictures(3)
    assert torch.equal(exported.embed(images), extractor.embed(images))
    pixels = torch.stack([exported.preprocessing.resize_crop(torch.from_numpy(i).permute(2, 0, 1)) for i in images])
    with torch.no_grad():
        model = AutoModel.from_pretrained(tmp_path / "export", add_pooling_layer=False).eval()
        theirs = model(pixel_values=exported.preprocessing.normalize(pixels)).last_hidden_state[:, 0]
    torch.testing.assert_close(exported.embed(images), theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"`lr=0.5` differs from the 0.01 that .*cut/0 was started with; leave it out"):
        distill(pictures(), out=tmp_path, name="cut", ckpt_path="last", **small(networks, lr=0.5))
    with pytest.raises(UserError, match="`epochs` is 2, the checkpoint has completed 3; give more"):
        distill(pictures(), out=tmp_path, name="cut", ckpt_path="last", **small(networks, epochs=2))


@pytest.mark.slow
def test_a_resnet_opens_in_torchvision(networks: Path, tmp_path: Path) -> None:
    given = small(networks, student="resnet18", weights="none", image_size=64, epochs=1)
    extractor = distill(pictures(), out=tmp_path, **given).extractor
    extractor.save_pretrained(tmp_path / "export")
    model = resnet18()
    found = model.load_state_dict(load_file(tmp_path / "export/model.safetensors"), strict=False)
    assert found.unexpected_keys == [] and set(found.missing_keys) == {"fc.weight", "fc.bias"}
    model.fc = torch.nn.Identity()  # type: ignore[assignment]
    images = pictures(3)
    prepared = [extractor.preprocessing.resize_crop(torch.from_numpy(i).permute(2, 0, 1)) for i in images]
    with torch.no_grad():
        theirs = model.eval()(extractor.preprocessing.normalize(torch.stack(prepared)))
    torch.testing.assert_close(extractor.embed(images), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"epochs": 0}, "`epochs` is 0; give 1 or more"),
        ({"batch_size": 1}, "`batch_size` is 1; give 2 or more"),
        ({"lr": 0.0}, "`lr` is 0.0; give a number above 0"),
        ({"seed": -1}, "`seed` is -1; give a whole number from 0 to 4294967295"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1; give a number from 0 up"),
        ({"views": "many"}, "`views` is 'many'; give a whole number"),
        ({"val_fraction": 1.0}, "`val_fraction` is 1.0; give a number between 0 and 1"),
        ({"pupil": "resnet18"}, "distill has no argument 'pupil'; it takes teacher, student"),
        ({"ckpt_path": "last"}, "no run with a checkpoint in .*runs/distill"),
    ],
)
def test_bad_options_are_one_line(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        distill(pictures(4), out=tmp_path, **given)
    assert not (tmp_path / "runs").exists()
