"""Every regime learns on a GPU, in every precision, with clipped gradients."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import VIT
from transferkit.extractor import Extractor
from transferkit.training.fitting import fit
from transferkit.training.trainer import seed_everything

pytestmark = pytest.mark.gpu

DIGITS: dict[str, Any] = {"classes": ["0", "1"], "n_per_class": 24, "batch_size": 12, "num_workers": 0}
REGIMES = ["frozen", "partial", "full", "scratch", "lora", "lp-ft", "stages"]
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An export of a small ViT."""
    seed_everything(1)
    made = Extractor.from_pretrained(VIT["backbone"], "none", architecture=VIT["architecture"])
    made.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_learns(regime: str, precision: str, base: Path, tmp_path: Path, accelerator: str) -> None:
    network = VIT if regime == "scratch" else {"backbone": str(base)}
    rates = {} if regime == "frozen" else {"lr_backbone": 3e-3}
    run = fit(
        "digits", **network, **DIGITS, **rates, regime=regime, max_epochs=12, precision=precision,
        accelerator=accelerator, out=tmp_path, report=False, gradient_clip_val=1.0,
    )  # fmt: skip
    assert run.metrics["val/acc"] > 0.8 and math.isfinite(run.metrics["val/loss"]), run.metrics
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
