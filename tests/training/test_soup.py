"""Averages of weights against plain PyTorch, chosen on val and never worse than the best fit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from tests.tiny import RESNET
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import KEY
from transferkit.training.module import TransferModule
from transferkit.training.soup import Average, greedy_average, refresh_statistics
from transferkit.training.trainer import make_trainer

pytestmark = pytest.mark.usefixtures("own_cache")


def state(seed: int) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=noise),
        "half": torch.randn(5, generator=noise).half(),
        "count": torch.tensor(seed),
        "frozen": torch.linspace(-1, 1, 7) / 3,
    }


def test_the_average_is_the_mean_to_rounding_and_equal_tensors_stay() -> None:
    states = [state(seed) for seed in range(7)]
    average = Average(states[2])
    for each in states:
        average = average.with_state(each)
    found = average.state()
    for name in ("weight", "half"):
        whole = torch.stack([each[name].double() for each in states]).mean(0)
        assert found[name].dtype == states[0][name].dtype
        torch.testing.assert_close(found[name].double(), whole, rtol=1e-3 if name == "half" else 1e-7, atol=1e-7)
    assert torch.equal(found["frozen"], states[0]["frozen"]) and found["count"] == 2


def write(folder: Path, number: int, weight: float, score: float, loss: float = 1.0) -> Path:
    metrics = {"val/acc": score, "val/loss": loss}
    content = {
        "state_dict": {"head.weight": torch.tensor([weight])},
        "optimizer_states": [],
        "callbacks": {},
        "epoch": number,
        KEY: {"format": 1, "metrics": metrics, "regime": "full"},
    }
    torch.save(content, folder / f"{number}.ckpt")
    return folder / f"{number}.ckpt"


FITS = {  # weights, and what each is worth on val
    "one that is worse stays out": ([0.0, 4.0, 1.0], [0.9, 0.7, 0.8], {0.0: 0.9, 0.5: 0.95, 5 / 3: 0.6}, [0, 2], 0.5),
    "equally good joins": ([0.0, 1.0], [0.9, 0.9], {0.0: 0.9, 0.5: 0.9}, [0, 1], 0.5),
    "none joins": ([0.0, 1.0, 2.0], [0.9, 0.8, 0.7], {0.0: 0.9, 0.5: 0.5, 1.0: 0.6}, [0], 0.0),
    "after one that does not, one may": ([0.0, 9.0, 2.0], [0.9, 0.8, 0.7], {0.0: 0.9, 4.5: 0.1, 1.0: 0.9}, [0, 2], 1.0),
}


@pytest.mark.parametrize("name", FITS)
def test_ingredients_join_in_the_order_of_val_if_it_is_not_worse(tmp_path: Path, name: str) -> None:
    weights, scores, worth, kept, result = FITS[name]
    files = [write(tmp_path, number, *each) for number, each in enumerate(zip(weights, scores, strict=True))]
    asked: list[tuple[float, bool]] = []

    def measure(content: dict[str, Any], averaged: bool) -> dict[str, Any]:
        weight = float(content["state_dict"]["head.weight"])
        asked.append((weight, averaged))
        score = next(value for known, value in worth.items() if weight == pytest.approx(known))
        return {**content, KEY: {**content[KEY], "metrics": {"val/acc": score}}}

    content, ingredients = greedy_average(files, "val/acc", measure)
    assert [one.number for one in ingredients] == sorted(range(len(scores)), key=lambda number: -scores[number])
    assert [one.number for one in ingredients if one.kept] == kept
    assert float(content["state_dict"]["head.weight"]) == pytest.approx(result)
    assert content[KEY]["metrics"]["val/acc"] >= max(scores)
    assert content[KEY]["soup"] == {"fits": len(files), "kept": kept}
    assert [averaged for _, averaged in asked] == [False] + [True] * (len(files) - 1)
    assert not {"optimizer_states", "callbacks"} & content.keys()


def test_of_equal_scores_the_lower_loss_comes_first(tmp_path: Path) -> None:
    files = [write(tmp_path, number, 0.0, 0.9, loss) for number, loss in enumerate([0.3, 0.1, 0.2])]
    _, ingredients = greedy_average(files, "val/acc", lambda content, averaged: content)
    assert [one.number for one in ingredients] == [1, 2, 0]


def test_fits_without_a_validation_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path, number, 0.0, 0.9) for number in range(2)]
    with pytest.raises(UserError, match=r"0\.ckpt was not measured on val"):
        greedy_average(files, "val/map", lambda content, averaged: content)


LEARNING: list[dict[str, Any]] = [{"regime": "full"}, {"regime": "full", "batchnorm": "eval"}]


@pytest.mark.parametrize(
    "model", [{"regime": "partial"}, *(pytest.param(each, marks=pytest.mark.slow) for each in LEARNING)]
)
def test_statistics_of_an_average_are_those_of_pytorch(
    tmp_path: Path, photo_folder: Path, model: dict[str, Any]
) -> None:
    module = TransferModule(**{**RESNET, **model})
    data = ImageDataModule(str(photo_folder), batch_size=6, num_workers=0)
    trainer = make_trainer(tmp_path / "run", accelerator="cpu", enable_progress_bar=False)
    module.connect(data, "fit")
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    expected = copy.deepcopy(module.backbone).eval()
    if model["regime"] == "partial":  # the frozen stages keep theirs
        expected.model.layer4.train()
        pixels = [module.normalized(batch["pixels"]) for batch in data.train_dataloader()]
        with torch.no_grad():
            first = expected.model.layer4
            inputs = [expected.forward_stage(each, "layer3") for each in pixels]
            update_bn(inputs, first)
    elif model.get("batchnorm") != "eval":
        update_bn([module.normalized(batch["pixels"]) for batch in data.train_dataloader()], expected)
    refresh_statistics(module, data, trainer)
    found, wanted = module.backbone.state_dict(), expected.state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    moved = {name for name, value in found.items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in moved} <= {"running_mean", "running_var", "num_batches_tracked"}
    assert bool(moved) is (model.get("batchnorm") != "eval") and not module.training
    assert all(module_.momentum == 0.1 for module_ in module.modules() if hasattr(module_, "momentum"))
