"""Regime lp-ft: one fit that begins with the probe's head, and resumes without probing again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.tiny import RESNET, VIT, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.embed import cached_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.core import head_logits
from transferkit.probe import LinearClassifier, probe_embeddings
from transferkit.probe.label_probe import start_labels
from transferkit.probe.linear import sweep
from transferkit.probe.standardize import KINDS
from transferkit.training import module as training
from transferkit.training.module import TransferModule
from transferkit.training.optimizers import chosen_rates
from transferkit.training.probe_start import kinds_of, start_classes
from transferkit.training.start import finetune_start
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS: dict[str, Any] = {
    "classes": ["0", "1", "2"],
    "n_per_class": 10,
    "val_fraction": 0.1,
    "test_fraction": 0.1,
    "num_workers": 0,
}


class Watch(Callback):
    """The head before the first step, val/acc by step, and a checkpoint written in the middle of the first epoch."""

    def __init__(self, cut: Path | None = None) -> None:
        self.cut, self.accuracies = cut, dict[int, float]()
        self.head: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.accuracies[trainer.global_step] = float(trainer.callback_metrics["val/acc"])
        if not trainer.global_step:
            assert isinstance(pl_module, TransferModule) and pl_module.head is not None
            self.head = {name: value.clone() for name, value in pl_module.head.state_dict().items()}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.cut and trainer.global_step == 2:
            trainer.save_checkpoint(self.cut)


def lp_ft(
    run: Path, model: dict[str, Any], watch: Watch, resume: Path | None = None, epochs: int = 2, **options: Any
) -> tuple[TransferModule, Trainer]:
    seed_everything(0)
    module = TransferModule(**{**model, "regime": "lp-ft"})
    options = {"max_epochs": epochs, "enable_progress_bar": False, "accelerator": "cpu", **options}
    trainer = make_trainer(run, callbacks=[watch], **options)
    trainer.fit(module, datamodule=ImageDataModule("digits", **DIGITS), ckpt_path=resume)
    return module, trainer


def start_of(model: dict[str, Any]) -> tuple[Extractor, LinearClassifier, float]:
    """The probe's classifier on the splits of the fit, of embeddings as they are, and its accuracy on val."""
    seed_everything(0)
    module = TransferModule(**model)
    data = ImageDataModule("digits", **DIGITS)
    data.configure(preprocessing=module.preprocessing)
    data.setup("fit")
    extractor = Extractor(module.backbone, module.preprocessing)
    found = cached_features(extractor, data.table)
    start = probe_embeddings(found, shots=(1,), few_shot_seeds=(0,)).start
    rows = {name: [found.row_of[path] for path in data.tables[name].paths] for name in ("train", "val")}
    sides = [one for name in rows for one in (found.embedding[rows[name]], data.targets(name))]
    best = sweep(*sides, len(data.class_names), kinds=("none",)).best
    start = replace(start, weight=best.weight, bias=best.bias, standardization="none", c=best.c)
    right = start.logits(sides[2]).argmax(1) == sides[3]
    return extractor, start, float(right.double().mean())


def test_it_starts_from_the_head_of_the_probe_and_measures_it(tmp_path: Path) -> None:
    """It is fitted on train and chosen on val, as ``transferkit probe`` does."""
    extractor, start, accuracy = start_of(VIT)
    watch = Watch()
    module, _ = lp_ft(tmp_path / "run", {**VIT, "lr_backbone": 0.0, "weight_decay": 0.0}, watch, epochs=1)
    expected = finetune_start(start, extractor)
    assert expected.head is not None and module.head is not None
    for name, value in expected.head.state_dict().items():
        assert torch.allclose(watch.head[name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(module.head.state_dict()[name], watch.head[name])  # the head learns at the backbone's rate
    assert module.l2_normalize == expected.l2_normalize
    assert watch.accuracies[0] == pytest.approx(accuracy)
    assert module.fitted_on == start.fitted_on
    best = Extractor.from_pretrained(tmp_path / "run/checkpoints/best.ckpt")
    assert best.record["epoch"] == 0 and best.l2_normalize == module.l2_normalize


def test_a_feature_that_hardly_varies_has_no_large_weight() -> None:
    """Within z-scores such a feature counts as much as others; at the scale of a new head, it would be all of it."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(3).repeat(40)
    features = torch.randn(120, 8, generator=random) + 2 * torch.eye(3, 8)[target]
    features[:, 7] = (features[:, 7] + 3 * (target == 2)) / 1000
    sides = features[::2], target[::2], features[1::2], target[1::2]
    scaled, plain = (
        start_classes(*sides, ("a", "b", "c"), kinds, torch.device("cpu"))
        for kinds in (("zscore",), kinds_of("class", None))
    )
    share = [float(one.weight[:, 7].norm() / one.weight.norm()) for one in (scaled, plain)]
    assert share[0] > 0.99 and share[1] < 0.5
    assert kinds_of("class", True) == ("l2",) and kinds_of("labels", None) == KINDS


@pytest.mark.slow
@pytest.mark.parametrize("l2_normalize", [True, False])
def test_a_given_normalization_is_kept(tmp_path: Path, l2_normalize: bool) -> None:
    module, _ = lp_ft(tmp_path, {**VIT, "l2_normalize": l2_normalize}, Watch(), epochs=1)
    assert module.l2_normalize == l2_normalize


@pytest.mark.parametrize("model", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_killed_in_the_first_epoch_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    whole, _ = lp_ft(tmp_path / "whole", model, Watch(tmp_path / "cut.ckpt"))
    monkeypatch.setattr(training, "probe_start", lambda *_: pytest.fail("a resumed fit probed again"))
    again, _ = lp_ft(tmp_path / "again", model, Watch(), tmp_path / "cut.ckpt")
    assert again.l2_normalize == whole.l2_normalize
    states = whole.state_dict(), again.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_lower_precision_and_the_export(tmp_path: Path, precision: str) -> None:
    module, _ = lp_ft(tmp_path / "run", VIT, Watch(), epochs=1, precision=precision)
    extractor = module.float().requires_grad_(False).as_extractor()
    extractor.save_pretrained(tmp_path / "export")
    again = Extractor.from_pretrained(tmp_path / "export")
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert extractor.head is not None and again.head is not None
    logits = [head_logits(one.head, one(pixels).clone(), one.l2_normalize) for one in (again, extractor) if one.head]
    assert torch.equal(*logits)


def test_the_rate_of_the_head_is_not_raised() -> None:
    backbone = TransferModule(**VIT).backbone
    assert chosen_rates(None, None, backbone, "lp-ft", True) == (1e-4, 1e-4)
    assert chosen_rates(None, 2e-4, backbone, "lp-ft", True) == (2e-4, 2e-4)
    assert chosen_rates(1e-3, None, backbone, "lp-ft", True) == (1e-3, 1e-4)
    assert chosen_rates(None, None, backbone, "full", True) == (1e-4, 1e-4)
    assert chosen_rates(None, None, backbone, "full", False) == chosen_rates(None, None, backbone) == (3e-3, 1e-4)
    assert chosen_rates(None, None, backbone, "frozen", True) == (3e-3, 1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_classes_and_images_weigh_what_they_weigh_in_the_loss(several: bool) -> None:
    """As in scikit-learn's logistic regression at the C that is chosen."""
    drawn = torch.Generator().manual_seed(0)
    codes = torch.randint(3, (150,), generator=drawn)
    features = torch.randn(3, 6, generator=drawn)[codes] + torch.randn(150, 6, generator=drawn)
    rows = torch.rand(150, generator=drawn) * (torch.arange(150) % 5 > 0)  # a fifth counts nothing
    by_class, names = torch.tensor([0.5, 1.0, 4.0]), ("a", "b", "c")
    target = torch.eye(3)[codes] if several else codes
    sides, both = (features, target, features, target), {"class_weights": by_class, "row_weights": rows}
    if several:
        found = start_labels(*sides, names, ("zscore",), **both)
    else:
        found = start_classes(*sides, names, ("zscore",), torch.device("cpu"), **both)
    values = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    mean = rows.mean() if several else (rows * by_class[codes]).mean()

    def fit(wanted: Tensor, weight: Tensor) -> LogisticRegression:
        model = LogisticRegression(C=found.c, tol=1e-9, max_iter=10_000)
        return model.fit(values, wanted.numpy(), (weight / mean).double().numpy())

    if several:  # a label's weight is that of the images that have it
        weights = [rows * torch.where(codes == code, by_class[code], 1.0) for code in range(3)]
        each = [fit(codes == code, weight).predict_proba(values)[:, 1] for code, weight in enumerate(weights)]
        ours, theirs = found.logits(features).sigmoid(), torch.tensor(np.stack(each, 1))
    else:
        ours = found.logits(features).softmax(1)
        theirs = torch.tensor(fit(codes, rows * by_class[codes]).predict_proba(values))
    torch.testing.assert_close(ours.double(), theirs, atol=1e-3, rtol=0)


def test_a_fit_hands_its_weights_to_the_probe(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = training.probe_start
    monkeypatch.setattr(training, "probe_start", lambda *given: (seen.extend(given[3:]), original(*given))[1])
    (tmp_path / "w.csv").write_text("path,weight\ntrain/apples/0.jpg,0\n")
    weights: dict[str, Any] = {"class_weights": [1.0, 3.0], "sample_weights": str(tmp_path / "w.csv")}
    _, data, _ = fit(tmp_path / "run", photo_folder, {**RESNET, "regime": "lp-ft"}, epochs=1, **weights)
    by_class, by_row = data.loss_weights(), data.row_weights()
    assert by_class is not None and by_row is not None and 0 in by_row.rows
    assert torch.equal(seen[0], by_class) and torch.equal(seen[1].rows, by_row.rows)


def test_one_command_learns_what_two_learn(tmp_path: Path) -> None:
    model = {**VIT, "optimizer": "sgd", "lr_backbone": 1e-2}  # Adam makes much of what gradients near 0 differ by
    _, start, _ = start_of(VIT)
    start.save(tmp_path / "start.safetensors")
    one, _ = lp_ft(tmp_path / "one", model, Watch())
    seed_everything(0)
    two = TransferModule(**{**model, "regime": "full"}, head=str(tmp_path / "start.safetensors"))
    trainer = make_trainer(tmp_path / "two", max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(two, datamodule=ImageDataModule("digits", **DIGITS))
    states = one.state_dict(), two.state_dict()
    assert all(torch.allclose(value, states[1][name], atol=1e-5) for name, value in states[0].items())


def test_a_head_of_another_origin_is_refused() -> None:
    for head in ("probe/start.safetensors", "zeroshot"):
        with pytest.raises(UserError, match=r"lp-ft.*fits its own head.*leave out `head="):
            TransferModule(**VIT, regime="lp-ft", head=head)
