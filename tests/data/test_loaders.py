"""The user's own DataLoaders under a plain Trainer: the numbers are those of plain PyTorch."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.tiny import RESNET
from transferkit import TransferModule
from transferkit.data.loaders import LoaderDataModule
from transferkit.errors import UserError

PIXELS = torch.randint(0, 256, (24, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXELS[::2] //= 3  # one class is dark
TARGET = torch.tensor([0, 1] * 12)


def loader(images: Tensor, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, TARGET), batch_size=8, **options)


def trainer(**options: Any) -> pl.Trainer:
    given = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return pl.Trainer(**{**given, "enable_progress_bar": False, "enable_model_summary": False, **options})


@pytest.mark.filterwarnings("ignore:Found .* in eval mode", "ignore:`isinstance.treespec")  # see quiet_libraries
@pytest.mark.parametrize(
    ("kind", "regime"),
    [
        pytest.param("pixels", "frozen", marks=pytest.mark.slow),
        ("inputs", "frozen"),
        pytest.param("pixels", "full", marks=pytest.mark.slow),
        pytest.param("inputs", "full", marks=pytest.mark.slow),
    ],
)
def test_own_loaders_train_and_are_measured(kind: str, regime: str) -> None:
    module = TransferModule(**{**RESNET, "regime": regime, "optimizer": "adamw", "lr_head": 0.02})
    images = PIXELS if kind == "pixels" else torch.stack([module.preprocessing(image) for image in PIXELS])
    data = LoaderDataModule(loader(images, shuffle=True), loader(images), class_names=["dark", "bright"])
    fitted = trainer()
    fitted.fit(module, datamodule=data)
    assert regime == "full" or fitted.callback_metrics["val/acc"] > 0.9
    (values,) = fitted.test(module, datamodule=data, verbose=False)
    extractor = module.as_extractor()
    logits = extractor.classify(extractor.embed(list(PIXELS)))
    assert values["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, TARGET).item(), rel=1e-4)
    assert values["test/acc"] == (logits.argmax(1) == TARGET).float().mean()
    assert extractor.class_names == ["dark", "bright"]


def test_rows_of_hugging_face_and_bare_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = LoaderDataModule(predict=[PIXELS[:4]], class_names=["a", "b"])
    data.preprocessing = TransferModule(**RESNET).preprocessing
    batch = data.on_before_batch_transfer({"image": PIXELS[:4], "label": TARGET[:4]}, 0)
    assert torch.equal(batch["target"], TARGET[:4]) and batch["pixels"].shape == (4, 3, 32, 32)
    assert data.on_before_batch_transfer(PIXELS[:4], 0)["target"].tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ((torch.zeros(4, 32, 32), TARGET[:4]), r"has images of \(4, 32, 32\); give a tensor \(B, 3, H, W\)"),
        ((["a.png"], [0]), "has images of list"),
        ((PIXELS[:2], [0, 2]), "up to 2, for 2 images and 2 class_names; give one class number per image"),
        ((PIXELS[:2], [0]), r"has labels of \(1,\)"),
    ],
)
def test_batches_of_another_kind_are_refused(batch: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        LoaderDataModule(class_names=["a", "b"]).on_before_batch_transfer(batch, 0)


def test_what_is_missing_is_named() -> None:
    module = TransferModule(**RESNET)
    with pytest.raises(UserError, match=r"val is missing; give LoaderDataModule\(val="):
        trainer().fit(module, datamodule=LoaderDataModule(loader(PIXELS), class_names=["a", "b"]))
    with pytest.raises(UserError, match="class_names has 0 names"):
        trainer().fit(module, datamodule=LoaderDataModule(loader(PIXELS), loader(PIXELS)))
    with pytest.raises(UserError, match=r"wrap your own DataLoaders in transferkit\.data\.loaders"):
        trainer().fit(module, loader(PIXELS), loader(PIXELS))
