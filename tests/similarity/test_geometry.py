"""Means over pairs, alignment, uniformity and silhouette against full pair tables and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_samples
from torch import Tensor

from transferkit.similarity import uniformity, unit_rows
from transferkit.similarity.geometry import class_sums, pair_means, silhouette


def table(rows: int = 150, classes: int = 6, zeros: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.randint(classes, (rows,))
    embeddings = torch.randn(classes, 10)[labels] + torch.randn(rows, 10)
    embeddings[:zeros] = 0
    embeddings[zeros : zeros + 5] = embeddings[20]  # duplicates
    labels[-1] = classes  # alone in its class
    return unit_rows(embeddings), labels


def check_means(query: Tensor, a: Tensor, reference: Tensor, b: Tensor, *, same: bool) -> None:
    count = int(max(a.max(), b.max())) + 1
    sums = class_sums(query, a, count)
    total, each = pair_means(sums, None if same else class_sums(reference, b, count))
    cosine = query.double() @ reference.double().T
    distance = torch.cdist(query.double(), reference.double()).square()
    alike = a[:, None] == b[None]
    pair = torch.ones_like(alike)
    if same:
        pair.fill_diagonal_(False)
    for means, rows in [(total, torch.ones(len(a)).bool())] + [
        (type(each)(*(column[c] for column in each)), a == c) for c in range(count)
    ]:
        own, rest = alike & pair & rows[:, None], ~alike & rows[:, None]
        expected = cosine[own].mean(), cosine[rest].mean(), distance[own].mean()
        torch.testing.assert_close(tuple(means), expected, equal_nan=True, atol=1e-9, rtol=1e-9)


def test_pair_means_within_a_table() -> None:
    rows, labels = table()
    check_means(rows, labels, rows, labels, same=True)
    check_means(rows[:2], labels[:2], rows[:2], labels[:2], same=True)


def test_pair_means_between_tables() -> None:
    rows, labels = table()
    check_means(rows[:60], labels[:60], rows[60:], labels[60:], same=False)


def test_one_class_has_no_inter() -> None:
    rows = unit_rows(torch.randn(5, 3))
    total, each = pair_means(class_sums(rows, torch.zeros(5).long(), 1))
    assert math.isnan(float(total.inter))
    assert math.isnan(float(each.inter))
    assert not math.isnan(float(total.intra))


def test_silhouette_is_scikit_learns() -> None:
    rows, labels = table()
    labels[labels == 3] = 2  # class 3 has no rows
    values = silhouette(rows, labels, class_sums(rows, labels, 7))
    expected = silhouette_samples(rows.double().numpy(), labels.numpy(), metric="cosine")
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)
    assert values[-1] == 0


def test_silhouette_of_equal_rows_is_zero() -> None:
    rows = unit_rows(torch.rand(1, 40).expand(8, 40))
    labels = torch.arange(8) % 2
    assert silhouette(rows, labels, class_sums(rows, labels, 2)).tolist() == [0] * 8


@pytest.mark.parametrize("rows", [2, 150, 2500])
def test_uniformity_is_the_mean_over_pairs(rows: int) -> None:
    unit, _ = table(rows, zeros=1) if rows > 30 else (torch.eye(2), None)
    squared = torch.nn.functional.pdist(unit.double()).square()
    assert uniformity(unit) == pytest.approx(float((-2 * squared).exp().mean().log()), abs=1e-5)


def test_uniformity_at_its_ends() -> None:
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    assert uniformity(torch.tensor([[1.0, 0]] * 3)) == pytest.approx(0)
    assert math.isnan(uniformity(torch.tensor([[1.0, 0]])))
