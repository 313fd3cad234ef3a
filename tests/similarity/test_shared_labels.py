"""Retrieval where sharing a label counts: against its definition, and against that of classes where each has one."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from transferkit.similarity import evaluate, unit_rows
from transferkit.similarity.shared_labels import evaluate_labels, shared_label_retrieval

KS = (1, 3, 50)


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=noise), (torch.rand(30, 5, generator=noise) < 0.25).float()


def test_each_metric_is_its_definition(rows: tuple[Tensor, Tensor]) -> None:
    unit, labels = unit_rows(rows[0]), rows[1].bool().numpy()
    found = shared_label_retrieval(unit, rows[1], unit, rows[1], KS, exclude_self=True)
    cosine = (unit @ unit.T).numpy()
    for query in range(30):
        order = [row for row in np.argsort(-cosine[query], kind="stable") if row != query]
        shares = np.array([bool((labels[query] & labels[row]).any()) for row in order])
        value = {name: float(column[query]) for name, column in found.items()}
        if not shares.any():
            assert all(np.isnan(one) for one in value.values())
            continue
        total, rank = shares.sum(), int(shares.argmax()) + 1
        precision = shares.cumsum() / np.arange(1, len(shares) + 1)
        assert value["precision_at_1"] == shares[0] and value["mrr"] == pytest.approx(1 / rank)
        assert value["hit_rate@3"] == shares[:3].any() and value["recall@3"] == pytest.approx(shares[:3].sum() / total)
        assert value["r_precision"] == pytest.approx(shares[:total].mean())
        assert value["map_at_r"] == pytest.approx((precision * shares)[:total].sum() / total)
        near = [jaccard_score(labels[query], labels[row], zero_division=0) for row in order[:3]]
        assert value["jaccard@3"] == pytest.approx(np.mean(near)) and value["recall@50"] == 1


def test_with_one_label_each_it_is_the_retrieval_of_classes(rows: tuple[Tensor, Tensor]) -> None:
    classes = torch.arange(30) % 4
    labels = torch.nn.functional.one_hot(classes, 4).float()
    found = evaluate_labels(rows[0], labels, list("abcd"), ks=KS).overall
    expected = evaluate(rows[0], ["abcd"[number] for number in classes], ks=KS).overall
    shared = found.keys() & expected.keys()
    assert {"map_at_r", "recall@3", "mrr", "queries", "uniformity", "k_clamped"} <= shared
    assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})
    reference = torch.randn(9, 4)
    found = evaluate_labels(rows[0], labels, list("abcd"), reference, labels[:9], KS).overall
    other = ["abcd"[number] for number in classes[:9]]
    expected = evaluate(rows[0], ["abcd"[number] for number in classes], reference, other, ks=KS).overall
    shared = found.keys() & expected.keys()
    assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})


def test_rows_without_known_labels_are_left_out(rows: tuple[Tensor, Tensor]) -> None:
    labels = rows[1].clone()
    labels[:4] = torch.nan
    found = evaluate_labels(rows[0], labels, list("abcde"), ks=KS)
    expected = evaluate_labels(rows[0][4:], labels[4:], list("abcde"), ks=KS)
    assert found.overall["unlabelled_rows"] == 4 and found.overall["map_at_r"] == expected.overall["map_at_r"]
    assert found.per_class.keys() == set("abcde") and found.per_class["a"] == expected.per_class["a"]
