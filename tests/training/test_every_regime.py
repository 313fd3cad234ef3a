"""Every regime with every kind of target: it resumes to the bit, in bfloat16 too, and is exported with its outputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tests.backbones.words import save_dual
from tests.tiny import RESNET, VIT, Cut
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.core import head_logits
from transferkit.training.module import TransferModule
from transferkit.training.number_task import NumberTask
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

ROWS = 28
HAS = np.random.default_rng(0).random((ROWS, 3)) < 0.4
IMAGES = [np.uint8(90 + 100 * has) * np.ones((8, 8, 1), np.uint8) for has in HAS]  # (H, W, 3)
GIVEN: dict[str, dict[str, Any]] = {
    "class": {"labels": ["dark" if has.sum() < 1 else "red" if has[0] else "other" for has in HAS]},
    "labels": {
        "labels": [[name for name, own in zip("rgb", has, strict=True) if own] for has in HAS],
        "multilabel": True,
    },
    "number": {"targets": [float(image.mean()) * 7 - 300 for image in IMAGES]},
}
SPLITS = ["val" if row % 4 == 3 else "train" for row in range(ROWS)]  # 21 to train on: 3 batches
WAYS: dict[str, dict[str, Any]] = {
    "frozen, solved for": {**VIT, "regime": "frozen"},
    "frozen, in steps": {**VIT, "regime": "frozen", "lr_head": 1e-2},
    "partial": {**VIT, "regime": "partial"},
    "partial, BatchNorm": {**RESNET, "regime": "partial", "unfreeze_last": 2},
    "full": {**VIT, "regime": "full", "dropout": 0.1},
    "full, BatchNorm": {**RESNET, "regime": "full"},
    "scratch": {**VIT, "regime": "scratch"},
    "lp-ft": {**VIT, "regime": "lp-ft"},
    "stages": {**VIT, "regime": "stages", "lr_backbone": 1e-3},
    "stages, BatchNorm": {**RESNET, "regime": "stages"},
    "lora": {"backbone": "vit", "regime": "lora", "lr_backbone": 3e-2},
    "full, averaged": {**VIT, "regime": "full", "ema": 0.5},
    "lp-ft, averaged": {**RESNET, "regime": "lp-ft", "ema": 0.5},
    "lora, averaged": {"backbone": "vit", "regime": "lora", "ema": 0.5},
    "frozen, from words": {"backbone": "dual", "regime": "frozen", "head": "zeroshot"},
    "full, from words": {"backbone": "dual", "regime": "full", "head": "zeroshot"},
    "full, another loss": {**VIT, "regime": "full"},
}
LOSS = {"class": "auto", "labels": "asymmetric", "number": "huber"}
PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "callbacks")


class Stop(Callback):
    """End a fit as its third epoch begins, as Ctrl-C does: what solves for the head has one step per epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network to adapt, and one that knows words."""
    root = tmp_path_factory.mktemp("networks")
    seed_everything(1)
    Extractor.from_pretrained(VIT["backbone"], "none", None, None, VIT["architecture"]).save_pretrained(root / "vit")
    save_dual("siglip", root / "dual")
    return root


def fit(
    run: Path,
    way: str,
    kind: str,
    precision: Any,
    networks: Path,
    resume: Path | None = None,
    callback: Callback | None = None,
) -> TransferModule:
    seed_everything(0)
    model = dict(WAYS[way])
    if (networks / model["backbone"]).is_dir():
        model["backbone"] = str(networks / model["backbone"])
    module = TransferModule(**model, loss=LOSS[kind] if "loss" in way else "auto")  # type: ignore[arg-type]
    data = ImageDataModule.from_images(IMAGES, splits=SPLITS, **GIVEN[kind], batch_size=8, num_workers=0)
    callbacks = [callback] if callback else []
    trainer = make_trainer(
        run, max_epochs=3, enable_progress_bar=False, accelerator="cpu", callbacks=callbacks, precision=precision
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module.eval()


def same(one: Any, other: Any) -> bool:
    """Whether two parts of a checkpoint are equal, tensors to the bit; paths and times of the runs are left out."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def read(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return content


@torch.no_grad()
def outputs(extractor: Extractor, pixels: Tensor) -> Tensor:
    assert extractor.head is not None
    return head_logits(extractor.head, extractor(pixels).clone(), extractor.l2_normalize)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("way", WAYS)
def test_it_resumes_and_is_exported(way: str, kind: str, precision: str, networks: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    if "words" in way and kind != "class":
        with pytest.raises(UserError, match=r'^`head="zeroshot"` needs one class per image, not (several|a number)'):
            fit(tmp_path / "whole", way, kind, precision, networks)
        return
    if "solved" in way:
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path / "stopped", way, kind, precision, networks, callback=Stop())
        cut = tmp_path / "stopped/checkpoints/last.ckpt"
    module = fit(tmp_path / "whole", way, kind, precision, networks, callback=Cut(cut) if "solved" not in way else None)
    again = fit(tmp_path / "again", way, kind, precision, networks, resume=cut)
    assert same(dict(module.state_dict()), dict(again.state_dict()))
    whole, resumed = read(tmp_path / "whole"), read(tmp_path / "again")
    for part in PARTS:
        assert same(whole.get(part), resumed.get(part)), part
    one, other = (content["transferkit"] for content in (whole, resumed))
    for record in (one, other):
        record["metrics"].pop("epoch_time")
    assert one == other and all(np.isfinite(list(one["metrics"].values())))

    last = Extractor.from_pretrained(tmp_path / "whole/checkpoints/last.ckpt")
    last.save_pretrained(tmp_path / "export")
    exported = Extractor.from_pretrained(tmp_path / "export")
    pixels = torch.randint(256, (4, 3, *module.preprocessing.image_size), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(pixels)
    if isinstance(module.task, NumberTask):  # trained on a standardized target, exported in its unit
        expected = expected * module.task.deviation + module.task.mean
    unit = max(1.0, float(expected.abs().max()))
    for extractor in (module.as_extractor(), last, exported):
        assert torch.allclose(outputs(extractor, pixels), expected, atol=1e-5 * unit)
