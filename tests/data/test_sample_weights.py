"""Weights of training images: read from a file, in the loss of a fit, and nowhere else."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch.nn import functional as F

from tests.tiny import RESNET
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.probe.linear import logits_of
from transferkit.probe.objective import Objective
from transferkit.probe.other_objectives import NumberObjective, OneVsRestObjective
from transferkit.runtime.files import file_sha256
from transferkit.training.mixing import mixed, weigh_rows, weighted_losses
from transferkit.training.module import TransferModule
from transferkit.training.regularization_path import RegularizationPath
from transferkit.training.trainer import make_trainer, seed_everything

pytestmark = pytest.mark.usefixtures("own_cache")
ROWS = "path,weight\ntrain/apples/0.jpg,0\ntrain/apples/1.png,3\ntrain/limes/2.jpg,0.5\n"


def write(path: Path, text: str = ROWS) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def ready(folder: Path, **options: Any) -> ImageDataModule:
    data = ImageDataModule(str(folder), batch_size=4, num_workers=0, **options)
    data.setup("fit")
    return data


def test_rows_without_a_weight_have_one(photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = ready(photo_folder, sample_weights=write(tmp_path / "w.csv", ROWS + "val/limes/0.jpg,7\n"))
    found = data.row_weights()
    assert found is not None
    expected = torch.ones(12)
    for path, weight in {"train/apples/0.jpg": 0, "train/apples/1.png": 3, "train/limes/2.jpg": 0.5}.items():
        expected[data.tables["train"].paths.index(path)] = weight
    torch.testing.assert_close(found.rows, expected / expected.mean())
    assert found.record == f"w.csv sha256:{file_sha256(tmp_path / 'w.csv')}"
    assert "weights 3 of 12 training images" in caplog.text


def test_with_class_weights_the_products_have_mean_one(photo_folder: Path, tmp_path: Path) -> None:
    data = ready(photo_folder, sample_weights=write(tmp_path / "w.csv"), class_weights=[1.0, 5.0])
    found, by_class = data.row_weights(), data.loss_weights()
    assert found is not None and by_class is not None
    assert float((found.rows * by_class[data.targets("train")]).mean()) == pytest.approx(1)


def test_an_audit_s_quality_of_labels_is_read(photo_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "label_quality.parquet"
    pq.write_table(pa.table({"path": ["train/apples/0.jpg", "train/limes/1.png"], "quality": [0.25, 0.75]}), file)
    data = ready(photo_folder, sample_weights=str(file))
    found = data.row_weights()
    assert found is not None and float(found.rows.min() / found.rows.max()) == pytest.approx(0.25)


def test_a_table_without_rows_weights_nothing(
    photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "label_quality.parquet"  # of an audit that could judge no label
    pq.write_table(pa.table({"path": pa.array([], pa.string()), "quality": pa.array([], pa.float64())}), file)
    found = ready(photo_folder, sample_weights=str(file)).row_weights()
    assert found is not None and found.rows.tolist() == [1] * 12
    assert "has no rows: all training images have weight 1" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read `sample_weights="),
        ("path,decision\na.jpg,drop\n", "has no columns 'path' and 'weight' or 'quality'"),
        ("image,weight\na.jpg,1\n", "has no columns 'path'"),
        ("path,weight\ntrain/apples/0.jpg,-1\n", "train/apples/0.jpg has -1; give numbers from 0 up"),
        ("path,weight\ntrain/apples/0.jpg,inf\n", "train/apples/0.jpg has inf"),
        ("path,weight\ntrain/apples/0.jpg,nan\n", "train/apples/0.jpg has nan"),
        ("path,weight\ntrain/apples/0.jpg,\n", "train/apples/0.jpg has ; give numbers"),
        ("path,weight\nelsewhere.jpg,1\n", "names no training image"),
        ("all", "leaves no training image a weight above 0"),
    ],
)
def test_bad_files_are_refused_in_one_line(photo_folder: Path, tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "w.csv"
    data = ready(photo_folder, sample_weights=str(file))
    if text == "all":
        text = "path,weight\n" + "".join(f"{path},0\n" for path in data.tables["train"].paths)
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        data.row_weights()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_the_solved_head_is_scikit_learns(class_weights: torch.Tensor | None) -> None:
    drawn = torch.Generator().manual_seed(0)
    target = torch.randint(3, (150,), generator=drawn)
    features = torch.randn(3, 6, generator=drawn)[target] + torch.randn(150, 6, generator=drawn)
    weight = torch.rand(150, generator=drawn) * (torch.arange(150) % 5 > 0)  # a fifth counts nothing
    head = torch.nn.Linear(6, 3)
    optimizer = RegularizationPath(head, features, target, 3, class_weights=class_weights, row_weights=weight)
    by_row = weight if class_weights is None else weight * class_weights[target]
    centered = features.double().numpy() - features.double().numpy().mean(0)
    kinds = centered / centered.std(0), centered / centered.var(0).mean() ** 0.5
    for step in range(3):
        optimizer.step()
        values = kinds[step % 2]
        model = LogisticRegression(C=optimizer.param_groups[0]["C"], tol=1e-9, max_iter=10_000)
        model.fit(values, target.numpy(), (by_row / by_row.mean()).double().numpy())
        found = logits_of(features, head.weight.detach(), head.bias.detach(), "none").softmax(1)
        np.testing.assert_allclose(found.numpy(), model.predict_proba(values), atol=1e-3)


@pytest.mark.parametrize("objective", [OneVsRestObjective, NumberObjective])
def test_other_targets_are_weighted_as_by_scikit_learn(objective: type[Objective]) -> None:
    drawn = torch.Generator().manual_seed(0)
    features, weight = torch.randn(120, 5, generator=drawn), torch.rand(120, generator=drawn)
    score = features @ torch.randn(5, 2, generator=drawn) + torch.randn(120, 2, generator=drawn)
    target = (score > 0).float() if objective is OneVsRestObjective else score
    head = torch.nn.Linear(5, 2)
    optimizer = RegularizationPath(head, features, target, 1, objective=objective, row_weights=weight)
    optimizer.step()
    c, by_row = optimizer.param_groups[0]["C"], (weight / weight.mean()).double().numpy()
    values = features.double().numpy()
    values = (values - values.mean(0)) / values.std(0)
    found = (features @ head.weight.T + head.bias).detach().numpy()
    for column in range(2):
        wanted = target[:, column].double().numpy()
        if objective is OneVsRestObjective:
            model = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(values, wanted, by_row)
            np.testing.assert_allclose(found[:, column], model.decision_function(values), atol=1e-3)
        else:
            ridge = Ridge(alpha=1 / c).fit(values, wanted, by_row)
            np.testing.assert_allclose(found[:, column], ridge.predict(values), atol=1e-3)


def test_a_step_has_the_weighted_mean_loss() -> None:
    torch.manual_seed(0)
    logits, target, weight = torch.randn(8, 3), torch.randint(3, (8,)), torch.rand(8)
    losses, weights = weigh_rows({"weight": weight}, *weighted_losses(logits, {"target": target}, None, 0.0))
    expected = (weight * F.cross_entropy(logits, target, reduction="none")).sum() / weight.sum()
    torch.testing.assert_close(losses.sum() / weights.sum(), expected)


def test_a_mixed_row_has_the_weights_of_both() -> None:
    torch.manual_seed(0)
    target, weight = torch.tensor([0, 1, 1, 2]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    batch = {"embedding": torch.randn(4, 5), "target": target, "weight": weight}
    torch.manual_seed(1)
    soft = mixed(batch, 1.0, 0.0, 3, lambda pixels: pixels)["soft"]
    each = {"embedding": torch.randn(4, 5), "target": torch.arange(4)}  # every row a class of its own
    torch.manual_seed(1)
    shares = mixed(each, 1.0, 0.0, 4, lambda pixels: pixels)["soft"]
    torch.testing.assert_close(soft, shares @ (F.one_hot(target, 3) * weight[:, None]))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("source", ["embedding", "pixels"])
def test_a_mixed_row_of_labels_or_a_number_has_the_mixed_target_and_weight(outputs: int, source: str) -> None:
    torch.manual_seed(0)
    target, weight = torch.rand(4, outputs), torch.tensor([0.0, 1.0, 2.0, 3.0])
    rows = torch.randn(4, 5) if source == "embedding" else torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    found = mixed({source: rows, "target": target, "weight": weight}, 1.0, 0.0, outputs, lambda pixels: pixels)
    torch.manual_seed(1)
    shares = mixed({source: rows, "target": torch.arange(4)}, 1.0, 0.0, 4, lambda pixels: pixels)["soft"]
    torch.testing.assert_close(found["soft"], shares @ target)
    torch.testing.assert_close(found["weight"], shares @ weight)


@pytest.mark.parametrize("regime", ["frozen", "full"])
def test_an_image_of_weight_zero_is_as_good_as_left_out(regime: str, photo_folder: Path, tmp_path: Path) -> None:
    def fitted(**options: Any) -> tuple[TransferModule, dict[str, Any]]:
        seed_everything(0)
        data = ImageDataModule(str(photo_folder), batch_size=16, num_workers=0, **options)
        module = TransferModule(**{**RESNET, "regime": regime, "batchnorm": "eval"})
        trainer = make_trainer(tmp_path / next(iter(options)), max_epochs=2, logger=False)
        trainer.fit(module, data)
        return module, dict(trainer.callback_metrics)

    left = [f"train/{name}/{file}" for name, file in (("apples", "0.jpg"), ("limes", "3.png"))]
    zero = write(tmp_path / "w.csv", "path,weight\n" + "".join(f"{path},0\n" for path in left))
    out = write(tmp_path / "out.csv", "path\n" + "".join(f"{path}\n" for path in left))
    weighted, metrics = fitted(sample_weights=zero)
    without, expected = fitted(exclude=out)
    record = weighted.describe()
    assert record["sample_weights"] == f"w.csv sha256:{file_sha256(zero)}"
    assert without.describe()["sample_weights"] is None
    assert float(metrics["train/loss"]) == pytest.approx(float(expected["train/loss"]), rel=1e-3)
    if regime == "frozen":
        torch.testing.assert_close(weighted.head.weight, without.head.weight, rtol=1e-4, atol=1e-5)


def test_a_fit_is_not_resumed_with_other_weights(photo_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.csv"

    def resume(**options: Any) -> None:
        seed_everything(0)
        data = ImageDataModule(str(photo_folder), batch_size=16, num_workers=0, **options)
        trainer = make_trainer(tmp_path / "run", max_epochs=2, logger=False, enable_progress_bar=False)
        last = tmp_path / "run/checkpoints/last.ckpt"
        trainer.fit(TransferModule(**RESNET), data, ckpt_path=last if last.is_file() else None)

    resume(sample_weights=write(file))
    resume(sample_weights=write(tmp_path / "moved.csv"))  # the same content
    for given in ({"sample_weights": write(file, ROWS.replace("3", "4"))}, {}):
        with pytest.raises(UserError, match=r"`sample_weights` is (w.csv|not given).*, the fit began with w.csv"):
            resume(**given)
