import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import RESNET, VIT, fit
from transferkit.backbones.weights import state_sha256
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer, seed_everything

SOLVED = {"head/C"}  # of a head that is solved for
LOGGED = {"epoch_time", "lr/head", "train/loss", "val/acc", "val/ece", "val/f1_macro", "val/loss"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


def table_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def random_backbone(model: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """The backbone's weights before a fit."""
    seed_everything(seed)
    return {k: v.clone() for k, v in TransferModule(**model).backbone.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"regime": "frozen"}, {}),
        ({"regime": "frozen"}, {"cache": "off"}),
        ({"regime": "partial"}, {}),
        ({"regime": "full", "lr_backbone": 1e-3}, {"augmentation": "light"}),
    ],
)
def test_frozen_parts_do_not_move_by_a_bit(
    tmp_path: Path, photo_folder: Path, options: dict[str, Any], data: dict[str, Any]
) -> None:
    model = {**RESNET, **options}
    before = random_backbone(model)
    after = fit(tmp_path / "run", photo_folder, model, **data)[0].backbone.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    learning = {"frozen": "nothing", "partial": "model.layer4.", "full": "model."}[options["regime"]]
    assert moved == {key for key in before if key.startswith(learning)}


def test_frozen_vit_stays(tmp_path: Path, photo_folder: Path) -> None:
    model = {**VIT, "regime": "partial", "lr_backbone": 1e-2}
    before = random_backbone(model)
    after = fit(tmp_path / "run", photo_folder, model)[0].backbone.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if "layers.1." in key or key.startswith("model.layernorm.")}


def test_cache_changes_the_cost_and_not_the_losses(tmp_path: Path, photo_folder: Path, reads: Counter[str]) -> None:
    model = {**RESNET, "dropout": 0.3, "label_smoothing": 0.1}
    fit(tmp_path / "on", photo_folder, model, epochs=4)
    assert len(reads) == 24 and set(reads.values()) == {1}  # one pass, whatever the epochs
    fit(tmp_path / "again", photo_folder, model, seed=0, epochs=1)
    assert set(reads.values()) == {1}  # and none at all the second time
    reads.clear()
    fit(tmp_path / "off", photo_folder, model, epochs=4, cache="off")
    assert set(reads.values()) == {4}  # known to be sound from the first pass
    for on, off in zip(table_of(tmp_path / "on"), table_of(tmp_path / "off"), strict=True):
        assert on["train/loss"] == pytest.approx(off["train/loss"], abs=1e-4)
        assert on["val/loss"] == pytest.approx(off["val/loss"], abs=1e-4)


def test_views_are_as_many_augmented_passes(tmp_path: Path, photo_folder: Path, reads: Counter[str]) -> None:
    _, data, _ = fit(tmp_path / "run", photo_folder, RESNET, epochs=5, augmentation="light", views=3)
    train = set(data.tables["train"].paths)
    assert {path: 3 if path in train else 1 for path in reads} == reads and len(reads) == 24
    views = data.features["train"]
    assert len(views) == 3 and not torch.equal(views[0], views[1]) and len(data.features["val"]) == 1


def test_a_view_is_the_augmented_image_of_its_epoch(tmp_path: Path, photo_folder: Path) -> None:
    options = {"augmentation": "light", "epochs": 2}
    fit(tmp_path / "views", photo_folder, RESNET, views=2, **options)
    fit(tmp_path / "fresh", photo_folder, RESNET, **options)
    for cached, fresh in zip(table_of(tmp_path / "views"), table_of(tmp_path / "fresh"), strict=True):
        assert cached["train/loss"] == pytest.approx(fresh["train/loss"], abs=1e-4)


def test_processes_change_no_bit_of_a_fit(tmp_path: Path, photo_folder: Path) -> None:
    model = {**VIT, "regime": "full", "dropout": 0.3}
    states = [
        fit(tmp_path / str(workers), photo_folder, model, augmentation="strong", num_workers=workers)[0].state_dict()
        for workers in (0, 2)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_logged_names(tmp_path: Path, photo_folder: Path) -> None:
    _, _, trainer = fit(tmp_path / "frozen", photo_folder, RESNET)
    _, _, other = fit(tmp_path / "full", photo_folder, {**VIT, "regime": "full", "layer_decay": 0.5})
    assert set(trainer.callback_metrics) == LOGGED | SOLVED  # two classes: no acc_top5
    assert set(other.callback_metrics) == LOGGED | {"lr/backbone"}
    rows = table_of(tmp_path / "full")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(set(row) == LOGGED | {"lr/backbone", "epoch"} for row in rows)
    assert rows[1]["lr/backbone"] / rows[1]["lr/head"] == pytest.approx(1e-4 / 3e-3)  # that of the last stage
    assert all(row["epoch_time"] > 0 for row in rows)


class Snapshots(Callback):
    """Which weights last.ckpt holds while the fit goes on."""

    def __init__(self, run: Path) -> None:
        self.last = run / "checkpoints" / "last.ckpt"
        self.keys: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last.is_file():
            self.keys.append(set(torch.load(self.last, weights_only=True)["state_dict"]))


@pytest.mark.parametrize("regime", ["frozen", "partial"])
def test_checkpoints_are_whole(tmp_path: Path, photo_folder: Path, regime: str) -> None:
    seed_everything(3)
    run = tmp_path / "run"
    module = TransferModule(**{**RESNET, "regime": regime, "l2_normalize": True})
    watch = Snapshots(run)
    trainer = make_trainer(run, max_epochs=2, enable_progress_bar=False, accelerator="cpu", callbacks=[watch])
    trainer.fit(module, datamodule=ImageDataModule(str(photo_folder), batch_size=4, num_workers=0))
    assert watch.keys == [set(module.state_dict())]  # whole also while the fit goes on
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        extractor = Extractor.from_pretrained(path)
        assert extractor.class_names == ["apples", "limes"] and extractor.l2_normalize
        assert extractor.preprocessing == module.preprocessing
    own = module.state_dict()
    assert state_sha256(extractor.backbone.state_dict()) == state_sha256(module.backbone.state_dict())
    assert extractor.head is not None and torch.equal(extractor.head.weight, own["head.weight"])


def test_last_is_of_the_last_epoch_and_best_of_the_highest_accuracy(tmp_path: Path, photo_folder: Path) -> None:
    fit(tmp_path / "run", photo_folder, RESNET, epochs=4)
    loaded = {
        name: torch.load(tmp_path / "run/checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    }
    assert loaded["last"]["epoch"] == 3
    highest = max(table_of(tmp_path / "run"), key=lambda row: (row["val/acc"], -row["val/loss"]))
    assert loaded["best"]["epoch"] + 1 == highest["epoch"]
    assert loaded["best"]["transferkit"]["metrics"]["val/acc"] == pytest.approx(highest["val/acc"])
    assert set(loaded["best"]["transferkit"]["metrics"]) == LOGGED | SOLVED


def test_a_fit_goes_on_from_a_checkpoint_with_its_head(tmp_path: Path, photo_folder: Path) -> None:
    first, _, _ = fit(tmp_path / "run", photo_folder, RESNET)
    path = str(tmp_path / "run/checkpoints/last.ckpt")
    data = ImageDataModule(str(photo_folder))
    second, third = TransferModule(path), TransferModule(path, regime="full")
    for module in (second, third):
        module.connect(data, "fit")
    assert first.head and second.head and third.head and torch.equal(first.head.weight, second.head.weight)
    scale = third.head.weight.norm() / first.head.weight.norm()  # for a backbone that learns, see test_start.py
    assert float(scale) < 1 and torch.allclose(third.head.weight, first.head.weight * scale, rtol=1e-4)
    other = TransferModule(path, l2_normalize=True)  # a head for other embeddings
    other.connect(data, "fit")
    assert other.head and not torch.equal(first.head.weight, other.head.weight)
    digits = TransferModule(path)
    digits.connect(ImageDataModule("digits"), "fit")
    assert digits.head and digits.head.weight.shape == (10, 512)


def test_classes_of_a_resumed_fit_are_verified(tmp_path: Path, photo_folder: Path) -> None:
    fit(tmp_path / "run", photo_folder, RESNET, epochs=1)
    (photo_folder / "train" / "limes").rename(photo_folder / "train" / "plums")
    (photo_folder / "val" / "limes").rename(photo_folder / "val" / "plums")
    trainer = make_trainer(tmp_path / "other", max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(UserError, match="trained on the classes apples, limes, the data has apples, plums"):
        trainer.fit(
            TransferModule(**RESNET),
            datamodule=ImageDataModule(str(photo_folder), num_workers=0),
            ckpt_path=tmp_path / "run/checkpoints/last.ckpt",
        )


def with_head(**options: Any) -> TransferModule:
    module = TransferModule(**{**VIT, **options})
    module.set_classes(["a", "b", "c"])
    return module


WEIGHT = torch.tensor([1.0, 2.0, 0.5])


def test_training_loss_is_weighted_and_smoothed() -> None:
    module = with_head(label_smoothing=0.1)
    module.class_weights = WEIGHT
    embedding, target = torch.randn(6, 32), torch.tensor([0, 1, 2, 0, 0, 1])
    log_p = module.classify(embedding).log_softmax(1)
    smooth = 0.9 * F.one_hot(target, 3) + 0.1 / 3  # (B, classes)
    losses = -(smooth * log_p).sum(1) * WEIGHT[target]
    torch.testing.assert_close(module.training_step({"embedding": embedding, "target": target}, 0), losses.mean())
    for row in range(6):  # the weight of a class is no less in a batch of its own
        batch = {"embedding": embedding[row : row + 1], "target": target[row : row + 1]}
        torch.testing.assert_close(module.training_step(batch, 0), losses[row])


class Alone:
    """A strategy of one process."""

    def reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        return tensor


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_val_loss_is_that_of_all_rows_whatever_the_batches(batch: int, weight: Tensor | None) -> None:
    module = with_head()
    module.class_weights = weight
    embedding, target = torch.randn(64, 32), torch.arange(64).remainder(3).sort().values
    for rows in torch.arange(64).split(batch):
        module.validation_step({"embedding": embedding[rows], "target": target[rows], "row": rows}, 0)
    wanted = F.cross_entropy(module.classify(embedding), target, weight=weight)  # torch's: by the sum of the weights
    torch.testing.assert_close(module.val_metrics.loss.compute(Alone()), wanted.detach())


@pytest.mark.parametrize(
    "options",
    [
        {"lr_head": -1.0},
        {"lr_backbone": float("nan")},
        {"weight_decay": -0.1},
        {"warmup_epochs": -1.0},
        {"momentum": 1.0},
        {"label_smoothing": 1.0},
        {"dropout": 7.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
    ],
)
def test_numbers_that_no_training_can_use(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(options))}` is .*; give a number"):
        TransferModule(**{**RESNET, **options})


def test_scratch_takes_no_weights() -> None:
    with pytest.raises(UserError, match=r'`regime="scratch"` takes no `weights="x.pt"`; give `regime="full"`'):
        TransferModule(weights="x.pt", regime="scratch")


def test_views_without_a_frozen_backbone_are_said(photo_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = TransferModule(**{**VIT, "regime": "full"})
    module.connect(ImageDataModule(str(photo_folder), augmentation="light", views=2), "fit")
    assert "`views=2` has no effect: embeddings are cached for a frozen backbone only" in caplog.text


def test_only_our_datamodule(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(UserError, match="ImageDataModule"):
        trainer.fit(TransferModule(**VIT), datamodule=LightningDataModule())


def test_a_share_of_a_global_batch_and_one_without_rows() -> None:
    """Where several processes train and measure; see tests/processes."""
    module = TransferModule(**VIT)
    module.set_classes(["a", "b"])
    batch = {"embedding": torch.randn(3, 32), "target": torch.tensor([0, 1, 1]), "row": torch.arange(3)}
    loss = module.training_step(batch, 0)
    assert torch.equal(module.training_step({**batch, "scale": torch.tensor(0.75)}, 0), 0.75 * loss)
    none = torch.empty(0, dtype=torch.long)
    empty = {"pixels": torch.empty(0, 3, 0, 0, dtype=torch.uint8), "target": none, "row": none}
    for outputs in (module.predict_step(empty, 0), module.test_step(empty, 0)):
        assert outputs["embedding"].shape == (0, 32) and outputs["probability"].shape == (0, 2)
    assert module.test_metrics.loss.sums is not None and module.test_metrics.loss.sums.tolist() == [0, 0]
