"""A calibration as a whole: its promises on simulated classifiers, its files, and what damages them."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from transferkit.errors import UserError
from transferkit.extractor.calibration import JSON, MOST_REFERENCES, TENSORS, Calibration, Sets

NAMES = ["ants", "bees", "<wasps>", "🐛"]


def simulated(rows: int, generator: torch.Generator, factor: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits that are so many times too large, and classes."""
    logits = torch.randn(rows, len(NAMES), generator=generator, dtype=torch.float64) * 2
    return factor * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    generator = torch.Generator().manual_seed(0)
    logits, target = simulated(400, generator)
    train, near = torch.randn(300, 6, generator=generator), torch.randn(400, 6, generator=generator)
    return Calibration.fit(logits, target, NAMES, near, train, torch.arange(300) % 4, "layer3", "abc")


def test_temperature_is_scipys_minimum_of_the_cross_entropy(calibration: Calibration) -> None:
    logits, target = simulated(400, torch.Generator().manual_seed(0))

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, target))

    oracle = minimize_scalar(loss, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9}).x
    assert calibration.temperature == pytest.approx(oracle, abs=1e-4) and 2.5 < oracle < 3.5
    assert torch.allclose(calibration.probability(logits), (logits / oracle).softmax(1), atol=1e-5)
    uncalibrated = logits.softmax(1).log()
    assert torch.allclose(calibration.probability(uncalibrated), calibration.probability(logits))


@pytest.mark.parametrize("sets", ["lac", "aps"])
def test_coverage_holds_though_the_temperature_is_fitted_on_the_same_images(sets: Sets) -> None:
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(200):
        calibration = Calibration.fit(*simulated(150, generator), NAMES)
        logits, target = simulated(500, generator)
        members = calibration.prediction_sets(calibration.probability(logits), 0.9, sets)
        found.append(float(members.gather(1, target[:, None]).double().mean()))
    error = np.std(found, ddof=1) / math.sqrt(200)
    assert abs(np.mean(found) - math.ceil(151 * 0.9) / 151) < 3 * error


def test_coverage_over_200_random_splits_of_digits() -> None:
    """Of 1,397 digits, blurred by noise until a third are misread, 300 calibrate and the others are covered."""
    rows, target = load_digits(return_X_y=True)
    noisy = rows + np.random.default_rng(0).normal(0, 8, rows.shape)
    classifier = LogisticRegression(C=1e-3, max_iter=500).fit(noisy[:400], target[:400])
    logits = torch.from_numpy(classifier.decision_function(noisy[400:]))
    labels, names = torch.from_numpy(target[400:]).long(), [str(digit) for digit in range(10)]
    assert 0.5 < (logits.argmax(1) == labels).double().mean() < 0.8
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(200):
        order = torch.randperm(len(logits), generator=generator)
        chosen, others = order[:300], order[300:]
        calibration = Calibration.fit(logits[chosen], labels[chosen], names)
        probability = calibration.probability(logits[others])
        members = [calibration.prediction_sets(probability, 0.9, sets) for sets in get_args(Sets)]
        found.append([float(each.gather(1, labels[others, None]).double().mean()) for each in members])
    expected = math.ceil(301 * 0.9) / 301
    errors = np.std(found, 0, ddof=1) / math.sqrt(200)
    assert (np.abs(np.mean(found, 0) - expected) < 3 * errors).all(), (np.mean(found, 0), errors)


def test_errors_among_answers_stay_below_the_bound_in_95_of_100_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = simulated(20_000, generator)
    held, answered = 0, 0.0
    for _ in range(100):
        calibration = Calibration.fit(*simulated(800, generator), NAMES)
        confidence, preds = calibration.probability(logits).max(1)
        kept = confidence > calibration.answer_threshold(0.2)
        held += not kept.any() or bool((preds != target)[kept].double().mean() <= 0.2)
        answered += float(kept.double().mean()) / 100
    assert held >= 95 and answered > 0.2


def test_false_alarms_are_as_rare_as_stated() -> None:
    generator, alarms = torch.Generator().manual_seed(0), {"knn": [], "mahalanobis": []}  # type: ignore[var-annotated]
    train = torch.randn(100, 6, generator=generator)
    for _ in range(100):
        near = torch.randn(99, 6, generator=generator)
        calibration = Calibration.fit(*simulated(99, generator), NAMES, near, train)
        for kind, found in alarms.items():
            distance = calibration.distance(torch.randn(200, 6, generator=generator), kind)  # type: ignore[arg-type]
            found.append(float((distance > calibration.distance_threshold(kind, 0.1)).double().mean()))  # type: ignore[arg-type]
    for found in alarms.values():
        assert abs(np.mean(found) - 0.1) < 3 * np.std(found, ddof=1) / 10


def test_files_hold_all_of_it(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    read = Calibration.load(tmp_path)
    assert read and read.summary() == calibration.summary() and read.tensors.keys() == calibration.tensors.keys()
    assert all(torch.equal(read.tensors[name], value) for name, value in calibration.tensors.items())
    content = json.loads((tmp_path / JSON).read_text())
    assert (content["val_images"], content["references"], content["layer"]) == (400, 300, "layer3")
    assert content["temperature"] == calibration.temperature and content["class_names"] == NAMES
    assert content["unlike_train_above"]["knn"]["0.05"] == calibration.distance_threshold("knn", 0.05)
    assert {path.name for path in tmp_path.iterdir()} == {JSON, TENSORS}
    assert Calibration.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda c, t: c.pop("temperature"),
        lambda c, t: c.update(temperature=-1.0),
        lambda c, t: c.update(val_images=399),
        lambda c, t: c.update(format=2),
        lambda c, t: c.update(classifier="another"),
        lambda c, t: t.pop("aps"),
        lambda c, t: t.update(centers=t["centers"][0]),
        lambda c, t: c.update(class_names=7),
        lambda c, t: t.pop("whitening"),
        lambda c, t: t.update(centers=t["centers"][:, 1:].contiguous()),
        lambda c, t: t.update(knn=t["knn"] * math.nan),
    ],
)
def test_damaged_files_are_refused_in_one_line(damage: Any, calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    content, tensors = json.loads((tmp_path / JSON).read_text()), dict(load_file(tmp_path / TENSORS))
    damage(content, tensors)
    (tmp_path / JSON).write_text(json.dumps(content))
    save_file(tensors, tmp_path / TENSORS, {"classifier": "abc"})
    with pytest.raises(UserError, match=r"calibration\.json.*; test again$") as caught:
        Calibration.load(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(UserError):
        Calibration.load(tmp_path)


def test_all_right_one_class_a_missing_class_and_a_thousand() -> None:
    certain = Calibration.fit(10 * torch.eye(4), torch.arange(4), NAMES)
    assert certain.temperature == 1 and not certain.knows_train
    wrong = Calibration.fit(10 * torch.eye(4), torch.arange(4).flip(0), NAMES)
    assert wrong.probability(10 * torch.eye(4)).amax() < 0.3, "sure of nothing"
    with pytest.raises(UserError, match="knows no training images"):
        certain.distance(torch.ones(1, 6))
    alone = Calibration.fit(torch.randn(30, 1), torch.zeros(30, dtype=torch.long), ["ants"])
    assert alone.temperature == 1 and alone.prediction_sets(torch.ones(2, 1)).all()
    generator = torch.Generator().manual_seed(0)
    logits, target = simulated(300, generator)
    some = Calibration.fit(logits[target < 2], target[target < 2], NAMES)
    assert some.prediction_sets(some.probability(logits)).any(1).all()
    wide, rows = torch.randn(50, 1000, generator=generator), torch.randn(2500, 8, generator=generator)
    many = Calibration.fit(
        wide, torch.arange(50), [str(k) for k in range(1000)], rows[:50], rows, torch.arange(2500) % 1000
    )
    assert (
        len(many.tensors["references"]) == MOST_REFERENCES and many.prediction_sets(many.probability(wide), 0.5).any()
    )
    with pytest.raises(UserError, match="needs images of val"):
        Calibration.fit(logits[:0], target[:0], NAMES)
