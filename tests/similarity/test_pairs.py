"""Near-duplicates against all pairs and scipy's connected components."""

import numpy
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from transferkit.errors import UserError
from transferkit.similarity import linked_rows, near_duplicates, pairs, similar_pairs, usual_threshold


def test_pairs_and_groups() -> None:
    rows = torch.randn(300, 12)[torch.randint(300, (1500,))] + 0.2 * torch.randn(1500, 12)  # two blocks high
    rows[[5, 900]] = 0
    cosine = torch.tensor(cosine_similarity(rows.double().numpy())).triu(1)
    first, second = (cosine >= 0.97).nonzero(as_tuple=True)
    found = {
        (i, j): c
        for a, b, score in similar_pairs(rows, 0.97)
        for i, j, c in zip(a.tolist(), b.tolist(), score.tolist(), strict=True)
    }
    assert set(found) == set(zip(first.tolist(), second.tolist(), strict=True))
    assert all(score == pytest.approx(float(cosine[pair]), abs=1e-6) for pair, score in found.items())

    component = torch.tensor(connected_components((cosine >= 0.97).numpy(), directed=False)[1])
    expected = [torch.where(component == c)[0].tolist() for c in sorted(set(component.tolist()))]
    assert linked_rows(rows, 0.97) == sorted(group for group in expected if len(group) > 1)
    assert max(map(len, expected)) > 3  # chains were there to be joined


def test_any_two_rows_of_a_group_are_alike_and_no_two_groups_could_be_one() -> None:
    rows = torch.randn(120, 12)[torch.randint(120, (500,))] + 0.2 * torch.randn(500, 12)
    rows[[5, 300]] = 0
    cosine = torch.tensor(cosine_similarity(rows.double().numpy()))
    groups = near_duplicates(rows, 0.97)
    assert groups == sorted(groups) and all(group == sorted(group) and len(group) > 1 for group in groups)
    assert all(cosine[group][:, group].min() >= 0.97 - 1e-6 for group in groups)
    every = [*groups, *([row] for row in set(range(500)) - {row for group in groups for row in group} - {5, 300})]
    lowest = torch.stack([torch.stack([cosine[one][:, other].min() for other in every]) for one in every])
    assert lowest.fill_diagonal_(0).max() < 0.97
    assert max(map(len, linked_rows(rows, 0.97))) > max(map(len, groups))

    near = linkage((1 - cosine.clamp(max=1)).numpy()[numpy.triu_indices(500, 1)], "complete")
    label = fcluster(near, 0.03 + 1e-9, "distance")
    found = [numpy.flatnonzero(label == one).tolist() for one in sorted(set(label.tolist()))]
    assert groups == sorted(group for group in found if len(group) > 1)


def test_chains_are_cut_at_their_weakest_link() -> None:
    angle = torch.tensor([0.0, 1.0, 1.8, 2.5, 9.0]).deg2rad()
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    assert near_duplicates(rows, float(torch.tensor(1.05).deg2rad().cos())) == [[0, 1], [2, 3]]


def test_many_linked_rows_are_cut_into_parts_that_hold_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "LARGEST", 8)
    rows = torch.randn(30, 6)[torch.randint(30, (600,))] + 0.1 * torch.randn(600, 6)
    rows[:20] = rows[0]
    groups = near_duplicates(rows, 0.9)
    cosine = torch.tensor(cosine_similarity(rows.double().numpy()))
    assert all(cosine[group][:, group].min() >= 0.9 - 1e-6 for group in groups)
    assert any(set(range(20)) <= set(group) for group in groups)
    seen = [row for group in groups for row in group]
    assert len(seen) == len(set(seen)) > 200


@pytest.mark.parametrize("shared", [0.0, 3.0, 30.0])
def test_the_usual_threshold_follows_how_alike_everything_is(shared: float) -> None:
    """Copies with little noise are found, whether the others are alike or not, and hardly anything else is."""
    rows = torch.randn(200, 64) + shared * torch.ones(64)
    copies = rows[:20] + 0.05 * torch.randn(20, 64)
    every = torch.cat([rows, copies])
    threshold = usual_threshold(every)
    cosine = torch.tensor(cosine_similarity(every.double().numpy()))[*torch.triu_indices(220, 220, 1)]
    assert 1 - threshold == pytest.approx(min(0.05, 0.1 * (1 - float(cosine.median()))), rel=0.06)
    assert near_duplicates(every) == [[row, 200 + row] for row in range(20)]
    assert usual_threshold(every[:19]) == 0.976 and usual_threshold(torch.ones(50, 3)) == pytest.approx(1, abs=1e-6)
    every[50:] = 0
    assert near_duplicates(every[40:60], 0.5 if shared == 0 else 1) == []


def test_after_fine_tuning_images_of_a_class_are_alike_and_copies_more_so() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.eye(8, 64).repeat(25, 1) + 0.02 * torch.randn(200, 64, generator=draw)
    every = torch.cat([rows, rows[:20] + 0.002 * torch.randn(20, 64, generator=draw)])
    copies = [[row, 200 + row] for row in range(20)]
    assert sum(map(len, near_duplicates(every))) > 200, "nearly all of a class"
    threshold = usual_threshold(every, fine_tuned=True)
    distances, _ = NearestNeighbors(n_neighbors=10, metric="cosine").fit(every).kneighbors()
    assert 1 - threshold == pytest.approx(numpy.median(distances[:, -1]) / 8, rel=0.06)
    assert near_duplicates(every, threshold) == copies


def test_a_long_chain_is_one_group() -> None:
    """Each row like the next only, in shuffled order: the hardest case for joining pairs all at once."""
    angle = torch.randperm(2000) * 0.002
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    assert linked_rows(rows, float(torch.tensor(0.0025).cos())) == [list(range(2000))]


def test_threshold_of_one_finds_equal_directions() -> None:
    rows = torch.randn(6, 500)
    rows[4], rows[5] = rows[1] * 7, 0
    assert near_duplicates(rows, 1) == [[1, 4]]
    assert near_duplicates(torch.zeros(3, 2), 0.5) == []


def test_bad_input() -> None:
    for threshold in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(UserError, match="threshold"):
            near_duplicates(torch.ones(2, 2), threshold)
    with pytest.raises(UserError, match="row 1"):
        near_duplicates(torch.tensor([[1.0], [torch.nan]]))
