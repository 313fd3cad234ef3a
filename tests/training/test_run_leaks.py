"""A tested run looks for its training images among those of val and test."""

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import RESNET
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.training.module import TransferModule
from transferkit.training.run_leaks import leaks_of_run
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
    if regime == "full":  # its training images are not embedded by the network that it has become
        assert not (tmp_path / "leaks.json").exists()
        return
    found = json.loads((tmp_path / "leaks.json").read_text())
    assert found["images"] == found["of"] == 24 and found["count"] >= 1
    first = found["pairs"][0]  # the most alike
    assert (first["first"], first["second"]) == ("train/apples/0.jpg", "val/apples/0.jpg")
    assert first["splits"] == ["train", "val"] and first["cosine"] == pytest.approx(1)


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "leaks.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*leaks\.json: "):
        leaks_of_run(TransferModule(**RESNET), ImageDataModule("digits"), tmp_path)
