"""Retrieval metrics against torchmetrics, query by query, and against a loop written from the definitions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import retrieval as oracle

from transferkit.similarity import neighbours, unit_rows
from transferkit.similarity.retrieval import retrieval

KS = (1, 5, 10)


def by_definition(
    query: Tensor, query_class: Tensor, reference: Tensor, reference_class: Tensor, exclude_self: bool
) -> dict[str, list[float]]:
    """One query after the other, one rank after the other."""
    scores = query @ reference.T
    columns: dict[str, list[float]] = {}
    for q in range(len(query)):
        ranks = [c for c in range(len(reference)) if not (exclude_self and c == q)]
        ranks.sort(key=lambda c: (-float(scores[q, c]), c))
        found = [bool(reference_class[c] == query_class[q]) for c in ranks]
        wanted = sum(found)
        values = dict.fromkeys(
            ["precision_at_1", "r_precision", "map_at_r", "mrr"]
            + [f"{name}@{k}" for name in ("hit_rate", "recall", "knn_accuracy") for k in KS],
            math.nan,
        )
        if wanted:
            values["precision_at_1"] = float(found[0])
            values["r_precision"] = sum(found[:wanted]) / wanted
            precision = [sum(found[: i + 1]) / (i + 1) for i in range(wanted)]
            values["map_at_r"] = sum(p for p, hit in zip(precision, found, strict=False) if hit) / wanted
            values["mrr"] = 1 / (1 + found.index(True))
            for k in KS:
                values[f"hit_rate@{k}"] = float(any(found[:k]))
                values[f"recall@{k}"] = sum(found[:k]) / wanted
                vote: dict[int, float] = {}
                for c in ranks[:k]:
                    label = int(reference_class[c])
                    vote[label] = vote.get(label, 0) + math.exp(float(scores[q, c]) / 0.07)
                best = max(vote.values())
                winner = min(label for label, weight in vote.items() if math.isclose(weight, best, rel_tol=1e-9))
                values[f"knn_accuracy@{k}"] = float(winner == query_class[q])
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return columns


def clustered(rows: int, classes: int, width: int = 12) -> tuple[Tensor, Tensor]:
    labels = torch.randint(classes, (rows,))
    return unit_rows(torch.randn(classes, width)[labels] + 2 * torch.randn(rows, width)), labels


def coarse(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Many equal scores (exact in float32), duplicates and rows of zeros."""
    signs = torch.randint(-1, 2, (rows, 4)).float()
    signs[torch.randint(rows, (3,))] = 0
    signs *= (signs.abs().sum(1, keepdim=True) != 3) & (signs.abs().sum(1, keepdim=True) != 2)
    return unit_rows(signs), torch.randint(classes, (rows,))


def single_members(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    table, labels = clustered(rows, classes)
    labels[: classes // 2] = torch.arange(classes, classes + classes // 2)
    return table, labels


def one_class(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    return clustered(rows, 1)


def two_rows(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.eye(2), torch.zeros(2).long()


TABLES = [clustered, coarse, single_members, one_class, two_rows]


@pytest.mark.parametrize("make", TABLES)
@pytest.mark.parametrize("rows", [31, 130])
def test_leave_one_out(make: Callable[[int, int], tuple[Tensor, Tensor]], rows: int) -> None:
    table, labels = make(rows, 8)
    values = retrieval(table, labels, table, labels, int(labels.max()) + 1, ks=KS, exclude_self=True)
    expected = by_definition(table, labels, table, labels, exclude_self=True)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, torch.tensor(expected[name]).double(), equal_nan=True, msg=name)


@pytest.mark.parametrize("make", TABLES)
def test_query_against_reference(make: Callable[[int, int], tuple[Tensor, Tensor]]) -> None:
    table, labels = make(90, 9)
    cut = len(table) // 3 or 1
    sides = table[:cut], labels[:cut], table[cut:], labels[cut:]
    values = retrieval(*sides, int(labels.max()) + 1, ks=KS)
    for name, expected in by_definition(*sides, exclude_self=False).items():
        if values:
            torch.testing.assert_close(values[name], torch.tensor(expected).double(), equal_nan=True, msg=name)
        else:
            assert all(map(math.isnan, expected))


def test_torchmetrics_agrees() -> None:
    table, labels = clustered(400, 40)
    values = retrieval(table, labels, table, labels, 40, ks=KS, exclude_self=True)
    for q in range(0, 400, 7):
        others = torch.arange(400) != q
        preds = (table @ table[q] + 2)[others]  # above 0: torchmetrics ignores the rest
        target = labels[others] == labels[q]
        if not target.any():
            continue
        expected = {
            "precision_at_1": oracle.retrieval_precision(preds, target, top_k=1),
            "r_precision": oracle.retrieval_r_precision(preds, target),
            "mrr": oracle.retrieval_reciprocal_rank(preds, target),
        }
        for k in KS:
            expected[f"hit_rate@{k}"] = oracle.retrieval_hit_rate(preds, target, top_k=k)
            expected[f"recall@{k}"] = oracle.retrieval_recall(preds, target, top_k=k)
        for name, value in expected.items():
            assert float(values[name][q]) == pytest.approx(float(value), abs=1e-6), (q, name)


def test_blocks_and_short_lists_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `class_sized=False` the first hit is often outside the list, and its rank is counted."""
    table, labels = clustered(700, 60)
    whole = retrieval(table, labels, table, labels, 60, ks=(1,), exclude_self=True)
    monkeypatch.setattr(neighbours, "BLOCK", 700 * 40)
    for class_sized in (True, False):
        parts = retrieval(table, labels, table, labels, 60, ks=(1,), exclude_self=True, class_sized=class_sized)
        assert len(parts) == len(whole) - 2 * (not class_sized)
        for name, value in parts.items():
            torch.testing.assert_close(value, whole[name], msg=name)
    assert (whole["mrr"] < 0.1).any()


def test_counted_ranks_respect_ties() -> None:
    """All scores equal: the first relevant reference is as far down as its row number."""
    reference = torch.ones(500, 1)
    labels = torch.zeros(500).long()
    labels[321] = 1
    values = retrieval(torch.ones(1, 1), torch.tensor([1]), reference, labels, 2, ks=(3,), class_sized=False)
    assert float(values["mrr"]) == pytest.approx(1 / 322)
