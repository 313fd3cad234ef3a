"""A tested run looks for its training images among those of val and test."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.tiny import RESNET, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.image_table import open_images
from transferkit.embed import cached_features
from transferkit.errors import UserError
from transferkit.training import run_leaks
from transferkit.training.fitting import fit as run_fit
from transferkit.training.module import TransferModule
from transferkit.training.run_leaks import copies_of_train, leaks_of_run
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("regime", ["frozen", "full"])
def test_a_copy_of_a_training_image_in_val_is_found(regime: str, photo_folder: Path, tmp_path: Path) -> None:
    shutil.copy(photo_folder / "train" / "apples" / "0.jpg", photo_folder / "val" / "apples" / "0.jpg")
    seed_everything(0)
    module = TransferModule(**{**RESNET, "regime": regime})
    data = ImageDataModule(str(photo_folder), batch_size=8, num_workers=0)
    trainer = make_trainer(tmp_path, max_epochs=1, logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    (tmp_path / "leaks.json").write_text("of an earlier test")
    leaks_of_run(module, data, tmp_path)
    found = json.loads((tmp_path / "leaks.json").read_text())
    assert found["images"] == found["of"] == 24 and found["count"] >= 1
    first = found["pairs"][0]  # the most alike
    assert (first["first"], first["second"]) == ("train/apples/0.jpg", "val/apples/0.jpg")
    assert first["splits"] == ["train", "val"] and first["cosine"] == pytest.approx(1)


def test_of_many_images_some_are_compared(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_leaks, "MOST_REFERENCES", 3)
    module, data, _ = fit(tmp_path, photo_folder, {**RESNET, "regime": "full"}, epochs=1)
    trainer = make_trainer(tmp_path, enable_progress_bar=False, accelerator="cpu", logger=False)
    trainer.test(module, data, verbose=False)
    leaks_of_run(module, data, tmp_path)
    found = json.loads((tmp_path / "leaks.json").read_text())
    assert (found["images"], found["of"]) == (6, 24)


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "leaks.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*leaks\.json: "):
        leaks_of_run(TransferModule(**RESNET), ImageDataModule("images"), tmp_path)


def test_a_fit_tells_copies_of_training_images_from_the_embeddings_it_holds() -> None:
    rows = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))
    train, val = rows[:30], torch.cat([rows[30:], rows[4:6] + 1e-3])

    def said(augmentation: str = "none", **features: torch.Tensor) -> int:
        tables = {name: range(len(each)) for name, each in features.items()}
        held = {name: [each] for name, each in features.items()}
        return copies_of_train(SimpleNamespace(augmentation=augmentation, features=held, tables=tables))  # type: ignore[arg-type]

    cosine = val @ train.T / val.norm(dim=1, keepdim=True)
    assert int((cosine.amax(1) > 0.95).sum()) == 2, "the two copies"
    assert said(train=train, val=val) == 2
    assert said(train=train, val=val[:-2]) == 0
    assert said(train=train, val=train[:10] + 0.02 * rows[30:]) == 0, "all are alike, so none is more than others"
    assert said(train=train) == said("light", train=train, val=val) == 0
    assert said(train=train.repeat(200, 1), val=val) == 0, "too many for a comparison that nobody asked for"
    assert said(train=train, val=val * torch.nan) == 0


@pytest.mark.slow
def test_images_of_a_class_that_a_network_has_learned_are_not_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though all digits of a class are alike to it, only a copy is a leak, also when they have been embedded before."""
    monkeypatch.chdir(tmp_path)
    rows, target = load_digits(return_X_y=True)
    for number in range(400):
        split = "train" if number < 240 else "val"
        file = Path("images") / split / str(target[number]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((16 * rows[number].reshape(8, 8)).clip(0, 255).astype("uint8")).save(file)
    for number in range(6):
        folder = f"{target[number]}"
        shutil.copy(f"images/train/{folder}/{number}.png", f"images/val/{folder}/copy{number}.png")
    for again in (False, True):
        if not again:
            small = {**RESNET, "regime": "full"}
            run = run_fit("images", **small, max_epochs=8, accelerator="cpu", num_workers=0, batch_size=32, seed=0)
        else:
            cached_features(run.extractor, open_images("images"))
        assert run.test()["test/acc"] > 0.7
        found = json.loads((run.path / "leaks.json").read_text())
        assert {pair["second"].split("/")[-1] for pair in found["pairs"]} >= {
            f"copy{number}.png" for number in range(6)
        }
        assert found["count"] <= 20 and found["images"] == 406
        audited = json.loads((run.path / "audit.json").read_text())
        assert audited["judged"] > 0.9 * audited["labeled"]
