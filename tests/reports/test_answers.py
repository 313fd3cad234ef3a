"""Answers: what they say by the calibration's own thresholds, as columns, and what cannot be asked for."""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from transferkit.errors import UserError
from transferkit.extractor.calibration import Calibration
from transferkit.reports.answers import Answering, answer, answer_columns

NAMES = ['ants "red"', "bees, wild", "🐛"]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, 3, generator=generator)
    target = torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]
    train, near = torch.randn(90, 5, generator=generator), torch.randn(300, 5, generator=generator)
    return Calibration.fit(logits, target, NAMES, near, train)


@pytest.fixture
def probability() -> torch.Tensor:
    return torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05], [0.0, 0.5, 0.5]])


@pytest.mark.parametrize("sets", ["lac", "aps"])
def test_columns_say_what_the_calibration_says(calibration: Calibration, probability: torch.Tensor, sets: Any) -> None:
    inner = torch.tensor([[1.0, 2, 3, 4, 5], [-1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, -1, 0, 1]])
    answering = Answering(coverage=0.9, sets=sets, reject=0.35, unlike="knn", false_alarm=0.1)
    answers = answer(calibration, probability, inner, answering)
    preds = pa.array([NAMES[k] for k in probability.argmax(1).tolist()])
    columns = {name: column.to_pylist() for name, column in answer_columns(answers, NAMES, preds).items()}
    assert list(columns) == [
        "calibrated_probability", "set", "set_size", "answer", "knn_distance", "mahalanobis_distance", "unlike_train",
    ]  # fmt: skip
    tempered = probability.double() ** (1 / calibration.temperature)
    tempered /= tempered.sum(1, keepdim=True)
    assert columns["calibrated_probability"] == pytest.approx(tempered.amax(1).tolist(), abs=1e-6)
    members = calibration.prediction_sets(tempered, 0.9, sets)
    assert columns["set"] == [[NAMES[k] for k in range(3) if row[k]] for row in members]
    assert columns["set_size"] == [len(names) for names in columns["set"]]
    sure = tempered.amax(1) > calibration.answer_threshold(0.35)
    assert columns["answer"] == [name if s else None for name, s in zip(preds.to_pylist(), sure, strict=True)]
    assert columns["answer"].count(None) in (1, 2, 3)
    distance = calibration.distance(inner, "knn")
    assert columns["knn_distance"] == pytest.approx(distance.tolist(), rel=1e-6)
    assert columns["unlike_train"] == (distance > calibration.distance_threshold("knn", 0.1)).tolist()
    text = answer_columns(answers, NAMES, preds, as_text=True)["set"].to_pylist()
    assert [json.loads(line) for line in text] == columns["set"]
    assert len(answers.remarks) == 4


def test_nothing_but_the_probability_unless_asked(calibration: Calibration, probability: torch.Tensor) -> None:
    preds = pa.array([NAMES[0]] * 4)
    columns = answer_columns(answer(calibration, probability, None, Answering()), NAMES, preds)
    assert list(columns) == ["calibrated_probability"]
    answers = answer(calibration, probability, torch.ones(4, 5), Answering(unlike="none"))
    assert list(answer_columns(answers, NAMES, preds)) == ["calibrated_probability"]


def test_too_few_images_of_val_are_named(calibration: Calibration, probability: torch.Tensor) -> None:
    few = replace(calibration, tensors={name: value[:8] for name, value in calibration.tensors.items()})
    answers = answer(few, probability, None, Answering(coverage=0.9, reject=0.05))
    assert (
        answers.sets is not None and answers.sets.all() and answers.answered is not None and not answers.answered.any()
    )
    assert "each set has all classes: val has too few images (8) for this coverage" in answers.remarks
    assert "this takes at least 113 images of val, there are 8; add some" in answers.remarks


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"coverage": 1.0}, "`coverage` is 1.0; give a number between 0 and 1"),
        ({"reject": 0.0}, "`reject` is 0.0"),
        ({"false_alarm": float("nan")}, "`false_alarm` is nan"),
        ({"sets": "aps"}, "`sets=aps` needs `coverage`, such as `coverage=0.9`"),
        ({"sets": "raps"}, "`sets` is 'raps'; give lac, aps"),
        ({"unlike": "cosine"}, "`unlike` is 'cosine'; give knn, mahalanobis, none"),
    ],
)
def test_bad_values_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Answering(**given)


def test_sets_need_a_calibration(calibration: Calibration) -> None:
    Answering().require(None)
    Answering(coverage=0.9).require(calibration)
    for given in ({"coverage": 0.9}, {"reject": 0.05}):
        with pytest.raises(UserError, match=r"needs a calibrated classifier; test this one first"):
            Answering(**given).require(None)  # type: ignore[arg-type]


def test_that_no_threshold_keeps_the_bound_is_said(calibration: Calibration, probability: torch.Tensor) -> None:
    wrong = torch.zeros(400, dtype=torch.bool)
    tensors = {**calibration.tensors, "correct": wrong, "confidence": torch.rand(400), "lac": torch.rand(400)}
    answers = answer(replace(calibration, tensors=tensors), probability, None, Answering(reject=0.05))
    assert answers.answered is not None and not answers.answered.any()
    assert answers.remarks[-1].startswith("on val 1 are wrong in all, and not even among the surest images are so few")
