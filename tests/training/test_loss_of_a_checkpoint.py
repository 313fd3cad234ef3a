"""One checkpoint has one val/loss: in its fit, when it is opened, and after its export; by definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import VIT
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor import Extractor
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

ROWS = 40
DRAWN = np.random.default_rng(0)
IMAGES = [np.uint8(shade) * np.ones((8, 8, 3), np.uint8) for shade in DRAWN.integers(0, 256, (ROWS, 3))]
NAMES = ["a", "b"]
LABELS = ["b" if number % 4 == 0 else "a" for number in range(ROWS)]
SEVERAL = [["a"] * (number % 2) + ["b"] * (number % 4 < 2) for number in range(ROWS)]
NUMBERS = [float(image.mean()) * 7 - 300 + 900 * (number % 9 == 0) for number, image in enumerate(IMAGES)]
SPLITS = ["val" if number % 3 == 0 else "train" for number in range(ROWS)]
TRAIN, VAL = (torch.tensor([split == name for split in SPLITS]) for name in ("train", "val"))

CLASSES = torch.tensor([NAMES.index(label) for label in LABELS])
HAS = torch.tensor([[name in names for name in NAMES] for names in SEVERAL]).float()
CENTER, SCALE = torch.tensor(NUMBERS)[TRAIN].mean(), torch.tensor(NUMBERS)[TRAIN].std(correction=0)


def weighted_entropy(logits: Tensor) -> Tensor:
    """Of classes that weigh the same, whatever their number of training images."""
    return F.cross_entropy(logits, CLASSES[VAL], 1 / CLASSES[TRAIN].bincount().float())


def number_loss(loss: Any) -> Any:
    """On a target of mean 0 and deviation 1 over the training images."""
    return lambda values: loss((values - CENTER) / SCALE, (torch.tensor(NUMBERS)[VAL, None] - CENTER) / SCALE)


def asymmetric(logits: Tensor) -> Tensor:
    """Ridnik et al. 2021, equations 4 and 7."""
    p, target = logits.sigmoid(), HAS[VAL]
    shifted = (p - 0.05).clamp(min=0)
    return -(target * (1 - p) * p.log() + (1 - target) * shifted**4 * (1 - shifted).log()).mean()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "class weights": ({"labels": LABELS, "class_weights": "balanced"}, {}, weighted_entropy),
    "number": ({"targets": NUMBERS}, {}, number_loss(F.mse_loss)),
    "huber": ({"targets": NUMBERS}, {"loss": "huber"}, number_loss(F.huber_loss)),
    "asymmetric": ({"labels": SEVERAL, "multilabel": True}, {"loss": "asymmetric"}, asymmetric),
    "label weights": (
        {"labels": SEVERAL, "multilabel": True, "class_weights": [3.0, 0.5]},
        {},
        lambda logits: F.binary_cross_entropy_with_logits(logits, HAS[VAL], pos_weight=torch.tensor([3.0, 0.5])),
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        "class weights",
        "huber",
        *(pytest.param(name, marks=pytest.mark.slow) for name in list(CASES)[1:] if name != "huber"),
    ],
)
def test_it_is_the_same_in_its_fit_and_wherever_it_is_opened(case: str, tmp_path: Path) -> None:
    given, model, definition = CASES[case]

    def images(**options: Any) -> ImageDataModule:
        return ImageDataModule.from_images(IMAGES, **options, splits=SPLITS, num_workers=0, batch_size=4)

    def trainer(**options: Any) -> Any:
        return make_trainer(tmp_path / "run", enable_progress_bar=False, accelerator="cpu", logger=False, **options)

    seed_everything(0)
    module, fitting = TransferModule(**VIT, **model), trainer(max_epochs=3)
    fitting.fit(module, datamodule=images(**given))
    best, export = tmp_path / "run/checkpoints/best.ckpt", tmp_path / "export"
    extractor = Extractor.from_pretrained(best)
    extractor.save_pretrained(export)
    embedding = extractor.embed([image for image, split in zip(IMAGES, SPLITS, strict=True) if split == "val"])
    expected = pytest.approx(float(definition(extractor.classify(embedding))), rel=1e-4)

    plain = {
        name: value for name, value in given.items() if name != "class_weights"
    }  # an evaluation has those of the fit
    assert torch.load(best, weights_only=True)["transferkit"]["metrics"]["val/loss"] == expected
    for place in (best, export):
        (found,) = trainer().validate(TransferModule(str(place)), images(**plain), verbose=False)
        assert found["val/loss"] == expected, place
    other = TransferModule(str(export))
    other.class_weights = torch.tensor([7.0, 1.0])  # as after a fit of its own
    (found,) = trainer().validate(other, images(**plain), ckpt_path=best, verbose=False)
    assert found["val/loss"] == expected


def test_a_fit_has_the_loss_that_it_is_asked_for(tmp_path: Path) -> None:
    """Not that of the fit whose head it starts from."""
    images, weights = ImageDataModule.from_images(IMAGES, targets=NUMBERS, num_workers=0), dict[str, Tensor]()
    for name, options in (("huber", {**VIT, "loss": "huber"}), ("auto", {"backbone": "huber"})):
        source = {"backbone": str(tmp_path / "huber/checkpoints/last.ckpt")} if name == "auto" else options
        seed_everything(0)
        module = TransferModule(**source)
        trainer = make_trainer(tmp_path / name, max_epochs=1, enable_progress_bar=False, accelerator="cpu")
        trainer.fit(module, datamodule=images)
        weights[name] = module.head.weight.detach().clone()  # type: ignore[union-attr]
        assert module.describe().get("loss") == ({"huber": "huber"}.get(name))
    assert not torch.allclose(weights["huber"], weights["auto"])
