"""A fit that starts from a trained head: what it may see, what it may move, and that it knows how good it began."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from tests.tiny import RESNET, VIT, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.data.seen import backbone_seen, count_seen, remember_paths
from transferkit.data.splits import save_splits
from transferkit.embed import cached_features
from transferkit.embed import features as fit_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe import ProbeResult, probe_embeddings
from transferkit.training.module import TransferModule
from transferkit.training.start import soften
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")

STILL = {"lr_head": 0.0, "lr_backbone": 0.0, "weight_decay": 0.0, "regime": "full"}


def probed(root: Path | str, folder: Path, model: dict[str, Any], **data: Any) -> ProbeResult:
    """The probe of a random backbone, its extractor and heads written to a folder."""
    seed_everything(0)
    extractor = Extractor.from_pretrained(
        model["backbone"], "none", None, model.get("preprocessing"), model.get("architecture")
    )
    images = ImageDataModule(str(root), **data)
    images.setup("fit")
    table = replace(images.table, splits=(None,) * len(images.table)) if not data else images.table
    result = probe_embeddings(cached_features(extractor, table), coarse_to_fine=True, shots=(1,), few_shot_seeds=(0,))
    extractor.save_pretrained(folder / "extractor")
    result.classifier.save(folder / "classifier.safetensors")
    result.start.save(folder / "start.safetensors")
    save_splits(result.splits, folder / "splits.parquet")
    return result


class Validations(Callback):
    """val/acc after each validation, and the number of steps before it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append((trainer.global_step, float(trainer.callback_metrics["val/acc"])))


def start(folder: Path, root: Path | str, model: dict[str, Any], **data: Any) -> tuple[TransferModule, Validations]:
    """A fit of one epoch from what :func:`probed` wrote."""
    watch = Validations()
    seed_everything(0)
    module = TransferModule(str(folder / "extractor"), **model)
    trainer = make_trainer(
        folder / "run", max_epochs=1, enable_progress_bar=False, accelerator="cpu", callbacks=[watch]
    )
    trainer.fit(module, datamodule=ImageDataModule(str(root), **{"batch_size": 4, "num_workers": 0, **data}))
    return module, watch


def test_rates_of_zero_move_nothing_and_the_start_is_measured(tmp_path: Path, photo_folder: Path) -> None:
    result = probed(photo_folder, tmp_path, RESNET, val_fraction=0.0)
    before = Extractor.from_pretrained(str(tmp_path / "extractor")).backbone.state_dict()
    head = {"head": str(tmp_path / "classifier.safetensors"), "batchnorm": "eval"}
    module, watch = start(tmp_path, photo_folder, {**STILL, **head})
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())
    assert [step for step, _ in watch.seen] == [0, 3]
    assert [accuracy for _, accuracy in watch.seen] == pytest.approx([result.report["linear"]["top1"]] * 2)


def test_batchnorm_moves_where_it_is_asked_to(tmp_path: Path, photo_folder: Path) -> None:
    probed(photo_folder, tmp_path, RESNET, val_fraction=0.0)
    before = Extractor.from_pretrained(str(tmp_path / "extractor")).backbone.state_dict()
    for options in ({"head": str(tmp_path / "classifier.safetensors")}, {"batchnorm": "train"}):
        module, watch = start(tmp_path, photo_folder, {**STILL, **options})
        moved = {name for name, value in module.backbone.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if name.endswith(("running_mean", "running_var", "batches_tracked"))}
        assert [step for step, _ in watch.seen] == (
            [0, 3] if "head" in options else [3]
        )  # a new head is not worth measuring


def test_held_out_images_are_not_those_that_the_head_was_fitted_on(tmp_path: Path) -> None:
    result = probed("digits", tmp_path, VIT, test_fraction=0.2, val_fraction=0.2)
    both, alone = (str(tmp_path / f"{name}.safetensors") for name in ("classifier", "start"))
    splits = str(tmp_path / "splits.parquet")
    with pytest.raises(UserError, match=r"359 of the 359 images of val were used to fit the head.*as `splits`"):
        start(tmp_path, "digits", {"head": both}, splits=splits)
    with pytest.raises(UserError, match=r"images of (val|test) were used"):
        start(tmp_path, "digits", {"head": alone}, split_seed=3, test_fraction=0.2)
    module, watch = start(tmp_path, "digits", {"head": alone}, splits=splits)
    assert watch.seen[0][1] == pytest.approx(result.report["linear"]["val_top1"], abs=0.01)
    train = [p for p, s in zip(result.splits.paths, result.splits.splits, strict=True) if s == "train"]
    assert count_seen(train, module.fitted_on) == len(train) == 1079


def test_a_checkpoint_and_an_export_remember_as_well(tmp_path: Path) -> None:
    fit(tmp_path / "run", "digits", {**VIT, "regime": "frozen"}, epochs=1)
    best = tmp_path / "run/checkpoints/best.ckpt"
    Extractor.from_pretrained(best).save_pretrained(tmp_path / "export")
    for place in (best, tmp_path / "export"):
        with pytest.raises(UserError, match=r"images of val were used to fit the head.*`head=.none.`"):
            fit(tmp_path / "again", "digits", {"backbone": str(place)}, epochs=1, split_seed=1)
    module, _, _ = fit(tmp_path / "new", "digits", {"backbone": str(best), "head": "none"}, epochs=1, split_seed=1)
    assert not module.starts_trained


@pytest.mark.parametrize("times", [0.01, 1.0, 100.0])
def test_the_head_of_a_probe_is_softened_to_a_third_of_a_new_ones_size(times: float) -> None:
    new, head = nn.Linear(512, 10), nn.Linear(512, 10)
    head.load_state_dict({name: value * times for name, value in new.state_dict().items()})
    embedding = torch.randn(50, 512)
    before = head(embedding)
    soften(head)
    assert head.weight.std().item() == pytest.approx(min(times, 1 / 3) * new.weight.std().item(), rel=0.05)
    torch.testing.assert_close(head(embedding).argmax(1), before.argmax(1))
    torch.testing.assert_close(head(embedding) / head(embedding).std(), before / before.std())


def test_the_head_of_a_frozen_fit_is_as_that_of_a_probe(tmp_path: Path, photo_folder: Path) -> None:
    """Softened, and at the rate of the backbone; a head that was fine-tuned goes on as it is."""
    frozen, _, _ = fit(tmp_path / "frozen", photo_folder, {**VIT, "regime": "frozen"}, epochs=20)
    best, pixels = tmp_path / "frozen/checkpoints/best.ckpt", torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
    before, after = Extractor.from_pretrained(best), TransferModule(str(best), regime="full")
    assert before.head is not None and after.head is not None and frozen.head is not None
    largest = nn.Linear(32, 2).weight.std() / 3
    assert float(before.head.weight.std()) > largest >= 0.9 * float(after.head.weight.std())
    logits = before.head(before(pixels).clone()), after.eval()(pixels)
    torch.testing.assert_close(logits[1] / logits[1].std(), logits[0] / logits[0].std(), rtol=1e-3, atol=1e-3)
    seen: dict[str, float] = {}
    for name, regime, options in (
        ("full", "full", {}),
        ("new", "full", {"head": "none"}),
        ("still frozen", "frozen", {"optimizer": "adamw"}),
        ("given", "full", {"lr_head": 0.01}),
    ):
        _, _, trainer = fit(
            tmp_path / name, photo_folder, {"backbone": str(best), "regime": regime, **options}, epochs=1
        )
        seen[name] = trainer.lr_scheduler_configs[0].scheduler.base_lrs[0]
    assert seen == {"full": 1e-4, "new": 3e-3, "still frozen": 3e-3, "given": 0.01}
    tuned = tmp_path / "full/checkpoints/last.ckpt"
    once, again = Extractor.from_pretrained(tuned).head, TransferModule(str(tuned), regime="full").head
    assert once is not None and again is not None and torch.equal(once.weight, again.weight)


def test_what_the_backbone_was_trained_on_is_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also under a new head, a frozen fit or a probe's head; it is said, not refused: other data may have its paths."""
    few = {"n_per_class": 4, "classes": ["0", "1", "2"]}
    said = r"images of val have paths that the backbone was trained on"
    fit(tmp_path / "full", "digits", {**VIT, "regime": "full"}, epochs=1, **few)
    full = str(tmp_path / "full/checkpoints/best.ckpt")
    new = {"backbone": full, "head": "none"}
    fit(tmp_path / "new", "digits", new, epochs=1, **few)
    assert said not in caplog.text
    other = {**few, "split_seed": 1}
    module, images, _ = fit(tmp_path / "other", "digits", new, epochs=1, **other)
    assert said in caplog.text
    trained = module.describe()["backbone_fitted_on"]
    assert count_seen(images.tables["val"].paths, trained) > 0 == count_seen(["x"], trained)
    extractor = Extractor.from_pretrained(tmp_path / "other/checkpoints/best.ckpt")
    extractor.save_pretrained(tmp_path / "export")
    for place in (tmp_path / "export", tmp_path / "other/checkpoints/best.ckpt"):
        assert TransferModule(str(place), head="none").backbone_seen == trained
    probe = probe_embeddings(cached_features(extractor, images.table), shots=(1,), few_shot_seeds=(0,)).start
    record = probe.as_head_of(extractor).record
    assert backbone_seen(record) == trained and remember_paths((), record["fitted_on"], trained) == record["fitted_on"]
    frozen, _, _ = fit(tmp_path / "frozen", "digits", {**VIT, "regime": "frozen"}, epochs=1, **few)
    assert frozen.describe()["backbone_fitted_on"] == ""


def test_what_is_remembered() -> None:
    text = remember_paths(["a/1.png", "b/2.png"])
    assert remember_paths(["c.png"], text) == remember_paths(["c.png", "b/2.png", "a/1.png"])
    assert count_seen(["b/2.png", "b/3.png"], text) == 1 and count_seen(["x"], "") == 0
    assert len(text) <= 12 * 2


@pytest.mark.parametrize(
    ("scale", "few"),
    [
        (1.0, {}),
        pytest.param(1e-3, {}, marks=pytest.mark.slow),
        pytest.param(1e3, {}, marks=pytest.mark.slow),
        pytest.param(1.0, {"n_per_class": 25, "split_seed": 5}, marks=pytest.mark.slow),
    ],
)
def test_a_frozen_fit_is_as_good_as_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, few: dict[str, Any]
) -> None:
    """With defaults, on the same images, many or few, and whatever the scale of the features."""
    cached = fit_features.cached_features

    def scaled(*arguments: Any, **options: Any) -> Embeddings:
        found = cached(*arguments, **options)
        return replace(found, embedding=found.embedding * scale)

    monkeypatch.setattr(fit_features, "cached_features", scaled)
    seed_everything(0)
    extractor = Extractor.from_pretrained(VIT["backbone"], "none", None, None, VIT["architecture"])
    images = ImageDataModule("digits", **few)
    images.setup("fit")
    embeddings = scaled(extractor, images.table)
    top1 = probe_embeddings(embeddings, coarse_to_fine=True, shots=(1,), few_shot_seeds=(0,)).report["linear"]["top1"]
    fit(tmp_path / "run", "digits", VIT, epochs=20, **few)
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["transferkit"]["metrics"]["val/acc"]
    assert best >= top1 - 0.01


def test_fit_test_predict_and_embed_share_their_features(
    tmp_path: Path, photo_folder: Path, reads: Counter[str]
) -> None:
    module, images, trainer = fit(tmp_path / "run", photo_folder, RESNET)
    trainer.test(module, images, ckpt_path="best", verbose=False)
    trainer.predict(module, ImageDataModule(str(photo_folder / "val"), num_workers=0))
    cached_features(module.as_extractor(), open_images(photo_folder))  # as the verb embed does
    shown = {path for path in reads if not path.startswith(("apples", "limes"))}  # predict's paths have no split
    assert len(shown) == 24 and {reads[path] for path in shown} <= {1, 2}  # once more for the projector's thumbnails


def test_a_loaded_checkpoint_is_evaluated_with_its_own_backbone(tmp_path: Path, photo_folder: Path) -> None:
    """Also where the module was built with another, whose features are known by then."""
    _, _, _ = fit(tmp_path / "one", photo_folder, RESNET, seed=1)
    best = tmp_path / "one/checkpoints/best.ckpt"
    module, images, trainer = fit(tmp_path / "two", photo_folder, RESNET, seed=2)
    (found,) = trainer.validate(module, images, ckpt_path=best, verbose=False)
    extractor = Extractor.from_pretrained(best)
    val = ImageDataModule(str(photo_folder))
    val.setup("fit")
    pixels = torch.stack([extractor.preprocessing.resize_crop(val.tables["val"].read(row)) for row in range(12)])
    index = torch.tensor([extractor.class_names.index(str(label)) for label in val.tables["val"].labels])
    assert extractor.head is not None
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(extractor.head(extractor(pixels)), index)
    assert found["val/loss"] == pytest.approx(expected.item(), rel=1e-4)
