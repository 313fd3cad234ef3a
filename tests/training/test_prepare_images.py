"""The frozen stages of ``partial`` run once per image, and the fit is the one that runs them in each epoch."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer

from tests.tiny import RESNET, VIT, Cut, fit
from transferkit.backbones import cut as cuts
from transferkit.data.datamodule import ImageDataModule
from transferkit.training import prepare_images
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

PARTIAL_VIT: dict[str, Any] = {**VIT, "regime": "partial"}
PARTIAL_RESNET: dict[str, Any] = {**RESNET, "regime": "partial", "optimizer": "sgd", "lr_head": 1e-2}
MODELS = {
    "dropout": {**PARTIAL_VIT, "dropout": 0.2},
    "batchnorm": {**PARTIAL_RESNET, "unfreeze_last": 2, "lr_backbone": 1e-2},
    "recomputed": {**PARTIAL_VIT, "ema": 0.9, "gradient_checkpointing": True},
    "rate": {**PARTIAL_VIT, "lr_backbone": "auto"},
}

pytestmark = pytest.mark.usefixtures("own_cache")


def weights(module: TransferModule) -> Tensor:
    """All parameters and buffers in one row."""
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])


def logged(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name != "epoch_time"}


def assert_same(one: Any, other: Any) -> None:
    """Two fits with the same weights and metrics, to rounding."""
    assert float((weights(one[0]) - weights(other[0])).abs().max()) <= 1e-6
    assert logged(one[2]) == pytest.approx(logged(other[2]), abs=1e-6)


@pytest.mark.parametrize(
    "name", [name if name == "dropout" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_the_fit_is_the_one_without_the_cache(
    tmp_path: Path, photo_folder: Path, reads: Counter[str], name: str
) -> None:
    cached = fit(tmp_path / "on", photo_folder, MODELS[name], epochs=3)
    assert cached[0].cut is not None and len(reads) == 24 and set(reads.values()) == {1}
    plain = fit(tmp_path / "off", photo_folder, MODELS[name], epochs=3, cache="off")
    assert plain[0].cut is None
    assert_same(cached, plain)


def test_an_image_passes_the_frozen_stages_once(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: Counter[type[nn.Module]] = Counter()

    def count(kind: type[nn.Module]) -> None:
        forward = kind.forward

        def counted(module: nn.Module, inputs: Tensor, *more: Any, **options: Any) -> Any:
            passed[kind] += len(inputs)
            return forward(module, inputs, *more, **options)

        monkeypatch.setattr(kind, "forward", counted)

    count(ViTEmbeddings)
    count(ViTLayer)
    found = []
    for name in ("empty cache", "filled cache"):
        passed.clear()
        fit(tmp_path / name, photo_folder, PARTIAL_VIT, epochs=2)
        found.append((passed[ViTEmbeddings], passed[ViTLayer]))
    (embedded, ran), (embedded_again, ran_again) = found
    assert embedded - embedded_again == ran - ran_again == 24  # train and val, whatever the epochs
    assert ran_again - embedded_again >= 2 * 24  # the last block: each image in each epoch


@pytest.mark.slow
@pytest.mark.parametrize("model", [PARTIAL_VIT, PARTIAL_RESNET], ids=["vit", "resnet"])
def test_a_resumed_fit_is_the_uninterrupted_one_to_the_bit(
    tmp_path: Path, photo_folder: Path, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, resume: bool = False) -> TransferModule:
        seed_everything(0)
        module, data = TransferModule(**model), ImageDataModule(str(photo_folder), batch_size=4, num_workers=0)
        callbacks = [] if resume else [Cut(tmp_path / "cut.ckpt")]
        trainer = make_trainer(
            tmp_path / name, max_epochs=3, enable_progress_bar=False, accelerator="cpu", callbacks=callbacks
        )
        trainer.fit(module, datamodule=data, ckpt_path=str(tmp_path / "cut.ckpt") if resume else None)
        assert module.cut is not None
        return module

    whole = weights(run("whole"))
    assert torch.equal(weights(run("resumed", resume=True)), whole)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "other"))  # computed again
    assert torch.equal(weights(run("cleared", resume=True)), whole)


def crop(image: Tensor) -> Tensor:
    return image[:, :24]


def prepared(run: Path, data: ImageDataModule, model: dict[str, Any], **options: Any) -> TransferModule:
    """A module just before the first batch of a fit."""
    module = TransferModule(**{**PARTIAL_VIT, **model})
    module.trainer = make_trainer(
        run, **{"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, **options}
    )
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    module.connect(data, "fit")
    prepare_images.prepare_images(module, data, "fit")
    assert (module.cut is None) == (not data.features)
    return module


AS_BEFORE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "augmented": ({}, {"augmentation": "light"}, {}),
    "mixed": ({}, {"mixup": 0.2}, {}),
    "pasted": ({}, {"cutmix": 0.2}, {}),
    "cut off": ({}, {"transform": v2.Lambda(crop)}, {}),
    "nothing frozen": ({"unfreeze_last": 3}, {}, {}),
    "by stages": ({"regime": "stages"}, {}, {}),
    "half precision": ({}, {}, {"precision": "bf16-mixed"}),
    "one epoch": ({}, {}, {"max_epochs": 1}),
}


@pytest.mark.parametrize("name", AS_BEFORE)
def test_what_is_not_the_same_in_each_epoch_is_not_kept(tmp_path: Path, photo_folder: Path, name: str) -> None:
    model, options, of_trainer = AS_BEFORE[name]
    data = ImageDataModule.from_images(str(photo_folder), num_workers=0, **options)
    assert prepared(tmp_path / "run", data, model, **of_trainer).cut is None


LIMITS = {
    "a quarter of the feature cache": ("cache_limit", 1000),
    "a quarter of the free memory": ("available_memory", 10_000),
}


@pytest.mark.parametrize("what", LIMITS)
def test_where_there_is_no_room_one_line_says_so(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    name, room = LIMITS[what]
    monkeypatch.setattr(prepare_images, name, lambda: room)
    with caplog.at_level(logging.WARNING, "transferkit"):
        module = prepared(tmp_path / "run", ImageDataModule(str(photo_folder), num_workers=0), {})
    (line,) = [record.getMessage() for record in caplog.records]
    size = 24 * (16 + 1) * 32 * 4 / 1e9  # images x tokens x width x bytes
    assert module.cut is None and f"for 24 images takes {size:.2g} GB, more than {what}" in line


def test_a_network_that_cannot_be_cut_is_trained_as_before(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = cuts.Cut.rest
    monkeypatch.setattr(cuts.Cut, "rest", lambda *arguments: rest(*arguments) * 1.001)
    assert prepared(tmp_path / "run", ImageDataModule(str(photo_folder), num_workers=0), {}).cut is None
