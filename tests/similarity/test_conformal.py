"""Split conformal prediction: scores by their definitions, and the coverage that the theorem promises."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from transferkit.similarity.conformal import aps_scores, conformal_quantile, lac_scores

CLASSES, ROWS, SPLITS = 8, 1200, 200


def simulated(generator: torch.Generator, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Probabilities that are too sure of themselves, and classes drawn from milder ones."""
    logits = 1.5 * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    return (2 * logits).softmax(1), torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_scores_are_their_definitions() -> None:
    probability, _ = simulated(torch.Generator().manual_seed(0), 50)
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, p in enumerate(probability.numpy()):
        for k in range(CLASSES):
            before = p[p > p[k]].sum()
            assert aps_scores(probability)[row, k].item() == pytest.approx(before, abs=1e-12)
            drawn = before + uniform[row].item() * p[k]
            assert aps_scores(probability, uniform)[row, k].item() == pytest.approx(drawn, abs=1e-12)
            assert lac_scores(probability)[row, k].item() == pytest.approx(1 - p[k])


@pytest.mark.parametrize("n", [1, 9, 10, 99, 100, 1234])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_quantile_is_numpys_inverted_cdf_of_the_scores_and_infinity(n: int, coverage: float) -> None:
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    oracle = np.quantile(np.append(scores.numpy(), np.inf), coverage, method="inverted_cdf")
    assert conformal_quantile(scores, coverage) == oracle


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("sets", ["lac", "aps", "aps drawn"])
def test_coverage_over_200_splits_is_the_one_chosen(sets: str, coverage: float) -> None:
    """With continuous scores its expectation is ceil((n + 1) coverage) / (n + 1) (arXiv:2107.07511, C)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(SPLITS):
        probability, target = simulated(generator)
        uniform = torch.rand(ROWS, generator=generator, dtype=torch.float64) if sets == "aps drawn" else None
        scores = lac_scores(probability) if sets == "lac" else aps_scores(probability, uniform)
        own = scores[torch.arange(ROWS), target]
        found.append(float((own[200:] <= conformal_quantile(own[:200], coverage)).double().mean()))
    expected = math.ceil(round(201 * coverage, 9)) / 201
    error = np.std(found, ddof=1) / math.sqrt(SPLITS)
    assert abs(np.mean(found) - expected) < 3 * error and expected - coverage < 0.005


def test_aps_without_draws_has_the_most_probable_class_in_every_set() -> None:
    probability, target = simulated(torch.Generator().manual_seed(0))
    scores = aps_scores(probability)
    limit = conformal_quantile(scores[torch.arange(ROWS), target], 0.01)
    assert (scores <= limit).gather(1, probability.argmax(1, keepdim=True)).all()


def test_a_thousand_classes_and_one() -> None:
    probability = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert (aps_scores(probability).sort(1).values[:, -1] < 1).all()
    assert aps_scores(torch.ones(3, 1)).tolist() == lac_scores(torch.ones(3, 1)).tolist() == [[0.0]] * 3
