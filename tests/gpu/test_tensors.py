"""Tables of embeddings on a GPU: neighbors, metrics, duplicates and probes as on a CPU."""

import pytest
import torch
from torch import Tensor

from transferkit.probe.linear import fit_linear, sweep
from transferkit.similarity import top_k
from transferkit.similarity.evaluate import evaluate
from transferkit.similarity.pairs import near_duplicates

pytestmark = pytest.mark.gpu


def clusters(rows: int, width: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Noisy clusters, and their numbers."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, width, generator=generator)
    target = torch.arange(rows) % classes
    return centers[target] + spread * torch.randn(rows, width, generator=generator), target


@pytest.mark.parametrize("k", [1, 10, 100])
def test_neighbors(k: int, device: torch.device) -> None:
    rows, _ = clusters(3000, 64, 10)
    rows[7] = rows[3]  # equal ones: the smaller row comes first
    expected, order = top_k(rows, rows, k, exclude_self=True)
    cosine, found = top_k(rows.to(device), rows.to(device), k, exclude_self=True)
    torch.testing.assert_close(cosine.cpu(), expected, atol=1e-5, rtol=0)
    apart = (found.cpu() != order) & ((cosine.cpu() - expected).abs() > 1e-6)
    assert not apart.any() and (found.cpu() == order).double().mean() > 0.999


def test_metrics(device: torch.device) -> None:
    rows, target = clusters(600, 32, 5, spread=2.0)
    expected, found = (evaluate(rows.to(where), target) for where in ("cpu", device))
    assert found.overall.keys() == expected.overall.keys()
    for name, value in expected.overall.items():
        assert found.overall[name] == pytest.approx(value, abs=1e-3, nan_ok=True), name


def test_duplicates(device: torch.device) -> None:
    rows, _ = clusters(500, 32, 5)
    rows[400:] = rows[:100] + 1e-3
    expected, found = (near_duplicates(rows.to(where), threshold=0.97) for where in ("cpu", device))
    assert found == expected and len(found) == 100


def test_a_probe(device: torch.device) -> None:
    rows, target = clusters(900, 48, 6, spread=4.0)
    parts = rows[:600], target[:600], rows[600:], target[600:]
    grid = (1e-3, 1e-2, 1e-1, 1.0)
    expected, found = (
        sweep(*(part.to(where) for part in parts), 6, c_grid=grid, tolerance=1e-5) for where in ("cpu", device)
    )
    assert found.best.weight.device.type == "cpu"
    torch.testing.assert_close(found.accuracy, expected.accuracy, atol=0.01, rtol=0)
    fits = [
        fit_linear(*(part.to(where) for part in parts[:2]), 6, standardization="zscore", c=0.1)
        for where in ("cpu", device)
    ]
    assert all(fit.converged for fit in fits)
    torch.testing.assert_close(fits[0].weight, fits[1].weight, atol=1e-4, rtol=1e-2)
