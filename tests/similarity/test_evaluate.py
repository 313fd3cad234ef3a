"""The whole table: which names there are, when they are left out, and the degenerate cases."""

import math

import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from transferkit.errors import UserError
from transferkit.similarity import evaluate

RETRIEVAL = {"precision_at_1", "mrr", "r_precision", "map_at_r"} | {
    f"{name}@{k}" for name in ("hit_rate", "recall", "knn_accuracy") for k in (1, 5, 10)
}
PAIRS = {"intra_class_cosine", "inter_class_cosine", "cosine_gap", "alignment"}
COUNTS = {"rows", "zero_norm_rows", "unlabelled_rows", "queries", "queries_skipped"}
ALL = RETRIEVAL | PAIRS | COUNTS | {"uniformity", "silhouette_cosine", "nmi", "nmi_rows"}


def animals(rows: int = 90) -> tuple[Tensor, list[str | None]]:
    codes = torch.randint(3, (rows,))
    return torch.eye(3, 8)[codes] * 2 + torch.randn(rows, 8), [("ant", "bee", "cat")[c] for c in codes]


def test_names_overall_and_per_class() -> None:
    table, labels = animals()
    overall, per_class = evaluate(table, labels)
    assert overall.keys() == ALL
    assert list(per_class) == ["ant", "bee", "cat"]
    for name, values in per_class.items():
        assert values.keys() == RETRIEVAL | PAIRS | {"rows", "queries", "silhouette_cosine"}
        assert values["rows"] == labels.count(name)
    for metric in RETRIEVAL | {"silhouette_cosine"}:  # means over rows
        mean = sum(values[metric] * values["rows"] for values in per_class.values()) / 90
        assert overall[metric] == pytest.approx(mean), metric
    assert overall["silhouette_cosine"] == pytest.approx(silhouette_score(table, labels, metric="cosine"), abs=1e-6)
    assert overall["cosine_gap"] == overall["intra_class_cosine"] - overall["inter_class_cosine"]
    assert evaluate(table * 17, labels).overall["map_at_r"] == pytest.approx(overall["map_at_r"])


def test_integer_labels_and_r_based_metrics_left_out() -> None:
    table, labels = animals()
    codes = torch.tensor([("cat", "bee", "ant").index(str(label)) for label in labels])  # another order
    overall, per_class = evaluate(table, codes, class_sized=False)
    assert overall.keys() == ALL - {"r_precision", "map_at_r"}
    assert list(per_class) == ["0", "1", "2"]
    expected = evaluate(table, labels)
    for metric, value in per_class["2"].items():
        assert value == pytest.approx(expected.per_class["ant"][metric]), metric


def test_reference() -> None:
    table, labels = animals()
    overall, _ = evaluate(table[:30], labels[:30], table[30:], labels[30:])
    assert overall.keys() == ALL | {"reference_rows"}
    assert (overall["rows"], overall["reference_rows"], overall["queries"]) == (30, 60, 30)
    same, _ = evaluate(table, labels, table, labels)  # not leave-one-out: every row finds itself
    assert same["precision_at_1"] == 1


def test_without_labels() -> None:
    table, labels = animals()
    assert evaluate(table).overall.keys() == {"rows", "zero_norm_rows", "uniformity"}
    overall, _ = evaluate(table[:30], labels[:30], table[30:])
    assert overall.keys() == COUNTS | {
        "reference_rows", "uniformity", "silhouette_cosine", "nmi", "nmi_rows", "k_clamped",
    }  # fmt: skip
    assert (overall["queries_skipped"], overall["unlabelled_rows"]) == (30, 60)


def test_unlabelled_rows_are_left_out_and_counted() -> None:
    table, labels = animals()
    some: list[str | None] = [None if row % 4 == 0 else label for row, label in enumerate(labels)]
    kept = [row for row in range(90) if row % 4]
    overall, _ = evaluate(table, some)
    expected, _ = evaluate(table[kept], [labels[row] for row in kept])
    assert overall.pop("unlabelled_rows") == 23
    for metric in overall.keys() - {"rows", "uniformity"}:
        assert overall[metric] == pytest.approx(expected[metric]), metric
    nothing, per_class = evaluate(table, [None] * 90)
    assert nothing.keys() == COUNTS | {"uniformity", "k_clamped"}
    assert per_class == {}


def test_single_member_classes_are_skipped_and_counted() -> None:
    table, labels = animals(20)
    labels[7] = "yak"
    overall, per_class = evaluate(table, labels)
    assert (overall["queries"], overall["queries_skipped"]) == (19, 1)
    assert per_class["yak"].keys() == {"rows", "queries", "inter_class_cosine", "silhouette_cosine"}
    overall, _ = evaluate(table, list(range(20)))
    assert overall["queries"] == 0
    assert not RETRIEVAL & overall.keys()
    assert not {"intra_class_cosine", "silhouette_cosine"} & overall.keys()


def test_one_class() -> None:
    overall, _ = evaluate(torch.randn(12, 4), ["a"] * 12)
    assert overall.keys() == ALL - {
        "inter_class_cosine",
        "cosine_gap",
        "silhouette_cosine",
        "nmi",
        "nmi_rows",
    }
    assert {overall[name] for name in ("precision_at_1", "mrr", "r_precision", "map_at_r")} == {1}


@pytest.mark.parametrize("labels", [["a", "a"], ["a", "b"], [None, "a"]])
def test_two_rows_with_one_of_zeros(labels: list[str | None]) -> None:
    overall, _ = evaluate(torch.tensor([[0.0, 0], [0, 2]]), labels)
    assert overall["zero_norm_rows"] == 1
    assert overall["k_clamped"] == len([label for label in labels if label]) - 1
    assert all(map(math.isfinite, overall.values()))
    if labels == ["a", "a"]:
        assert (overall["alignment"], overall["intra_class_cosine"]) == (1, 0)  # |0 - y|^2 = 1
        assert overall["recall@10"] == 1


def test_one_row() -> None:
    overall, _ = evaluate(torch.ones(1, 3), ["a"])
    assert (overall["queries"], overall["queries_skipped"], overall["k_clamped"]) == (0, 1, 0)


def test_equal_rows_are_ranked_by_row() -> None:
    overall, _ = evaluate(torch.ones(6, 3), ["a", "b", "a", "b", "a", "b"], ks=(1,))
    # Row 0 finds row 1 first; every other row finds row 0.
    assert overall["precision_at_1"] == pytest.approx(2 / 6)


def test_nmi_is_sampled_and_says_so() -> None:
    table, labels = animals()
    overall, _ = evaluate(table * 1.0, labels, sample_rows=50)
    assert overall["nmi_rows"] == 50
    assert overall["nmi"] == pytest.approx(evaluate(table, labels).overall["nmi"], abs=0.25)
    assert overall == evaluate(table, labels, sample_rows=50).overall


def test_bad_input() -> None:
    table, labels = animals(6)
    spoilt = table.clone()
    spoilt[4, 0] = torch.nan
    with pytest.raises(UserError, match="embeddings: row 4"):
        evaluate(spoilt, labels)
    with pytest.raises(UserError, match="reference: row 4"):
        evaluate(table, labels, spoilt, labels)
    with pytest.raises(UserError, match="labels: 5 labels for 6 rows"):
        evaluate(table, labels[:5])
    with pytest.raises(UserError, match="reference_labels: 5 labels"):
        evaluate(table, labels, table, labels[:5])
    with pytest.raises(UserError, match="at least 1"):
        evaluate(table, labels, ks=(0, 5))
    with pytest.raises(UserError, match="8 numbers per row against 7"):
        evaluate(table, labels, table[:, :7], labels)
