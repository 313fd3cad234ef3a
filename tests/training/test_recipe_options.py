"""Options beside the regimes in whole fits: gradient checkpointing and balanced epochs, to a reloaded export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from tests.tiny import RESNET, VIT, Cut
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.core import head_logits
from transferkit.training.module import TransferModule
from transferkit.training.regularization_path import RegularizationPath
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {"classes": ["0", "1", "2"], "n_per_class": 8, "batch_size": 8, "num_workers": 0}
FULL: dict[str, Any] = {**VIT, "regime": "full", "dropout": 0.1}


class Targets(Callback):
    """How often each class and each row were trained on, by epoch."""

    def __init__(self) -> None:
        self.targets: dict[int, list[int]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.targets.setdefault(trainer.current_epoch, []).extend(batch["target"].tolist())


def fit(
    run: Path,
    model: Mapping[str, Any],
    resume: Path | None = None,
    data: Mapping[str, Any] | None = None,
    root: str = "digits",
    callbacks: list[Callback] | None = None,
    precision: Any = "32-true",
) -> TransferModule:
    seed_everything(0)
    module = TransferModule(**model)
    trainer = make_trainer(
        run, max_epochs=2, callbacks=callbacks, precision=precision, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(module, datamodule=ImageDataModule(root, **{**DIGITS, **(data or {})}), ckpt_path=resume)
    return module


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], **tolerance: float) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(value, other[name], **tolerance) if tolerance else torch.equal(value, other[name])
        for name, value in one.items()
    )


MODELS = [FULL, pytest.param({**RESNET, "regime": "partial", "unfreeze_last": 2}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("model", MODELS)
def test_gradient_checkpointing_is_the_same_fit_and_export(tmp_path: Path, model: dict[str, Any]) -> None:
    plain = fit(tmp_path / "plain", model, callbacks=[Cut(tmp_path / "cut.ckpt")])
    module = fit(tmp_path / "run", {**model, "gradient_checkpointing": True}, callbacks=[Cut(tmp_path / "own.ckpt")])
    assert alike(plain.state_dict(), module.state_dict(), atol=1e-5)
    again = fit(tmp_path / "again", {**model, "gradient_checkpointing": True}, tmp_path / "own.ckpt")
    assert alike(module.state_dict(), again.state_dict())
    Extractor.from_pretrained(tmp_path / "run/checkpoints/last.ckpt").save_pretrained(tmp_path / "export")
    exported = Extractor.from_pretrained(tmp_path / "export")
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert exported.head is not None
    with torch.no_grad():
        logits = head_logits(exported.head, exported(pixels).clone(), exported.l2_normalize)
        assert torch.allclose(logits, module.eval()(pixels), atol=1e-5)
        assert torch.allclose(module.as_extractor()(pixels), exported(pixels), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["full", "stages", "lp-ft"])
def test_gradient_checkpointing_in_bfloat16_with_the_average(tmp_path: Path, regime: str) -> None:
    model = {**VIT, "regime": regime, "ema": 0.5}
    plain = fit(tmp_path / "plain", model, precision="bf16-mixed")
    module = fit(tmp_path / "run", {**model, "gradient_checkpointing": True}, precision="bf16-mixed")
    assert alike(plain.state_dict(), module.state_dict(), atol=1e-4)


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Digits with 12, 4 and 8 training images."""
    data = ImageDataModule("digits", **{**DIGITS, "n_per_class": 12})
    data.setup("fit")
    kept = {"0": 12, "1": 4, "2": 8}
    lines = ["path,label,split"]
    folder = tmp_path / "images"
    folder.mkdir()
    for split, table in data.tables.items():
        for row, label in enumerate(table.labels):
            if split == "train" and not kept[str(label)]:
                continue
            kept[str(label)] -= split == "train"
            Image.fromarray(table.read(row).permute(1, 2, 0).numpy()).save(folder / f"{split}{row}.png")
            lines.append(f"{split}{row}.png,{label},{split}")
    (folder / "images.csv").write_text("\n".join(lines))
    return str(folder / "images.csv"), {"classes": None, "n_per_class": None}


@pytest.mark.parametrize("model", [{**VIT, "lr_head": 1e-2}, pytest.param(FULL, marks=pytest.mark.slow)])
def test_balanced_epochs(tmp_path: Path, uneven: tuple[str, dict[str, Any]], model: dict[str, Any]) -> None:
    root, data = uneven
    seen = Targets()
    cut = Cut(tmp_path / "cut.ckpt")
    whole = fit(tmp_path / "run", model, data={**data, "balanced": True}, root=root, callbacks=[seen, cut])
    for targets in seen.targets.values():
        assert torch.bincount(torch.tensor(targets)).tolist() == [8, 8, 8]
    again = fit(tmp_path / "again", model, cut.path, {**data, "balanced": True}, root)
    assert alike(whole.state_dict(), again.state_dict())


def test_a_balanced_fit_takes_steps(tmp_path: Path) -> None:
    """A solver sees all rows once."""
    module = fit(tmp_path / "run", VIT, data={"balanced": True})
    assert not isinstance(module.trainer.optimizers[0], RegularizationPath)
    with pytest.raises(UserError, match=r"`optimizer=.lbfgs.` solves .*balance"):
        fit(tmp_path / "lbfgs", {**VIT, "optimizer": "lbfgs"}, data={"balanced": True})
