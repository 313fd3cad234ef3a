"""The shrinkage of a covariance against scikit-learn's."""

import pytest
import sklearn.covariance
import torch

from transferkit.similarity.shrinkage import ledoit_wolf


@pytest.mark.parametrize(("rows", "width"), [(40, 5), (10, 30), (3, 2)])
def test_ledoit_and_wolf_as_scikit_learn_has_it(rows: int, width: int) -> None:
    centered = torch.randn(rows, width, dtype=torch.float64) * torch.arange(1, width + 1)
    centered -= centered.mean(0)
    _, shrinkage = sklearn.covariance.ledoit_wolf(centered.numpy(), assume_centered=True)
    assert ledoit_wolf(centered, centered.T @ centered / rows) == pytest.approx(shrinkage)


def test_equal_rows_are_shrunk_to_the_identity() -> None:
    assert ledoit_wolf(torch.zeros(4, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)) == 1.0
