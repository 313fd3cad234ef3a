"""Label quality: cleanlab's own scores and counts, and neighbors' votes from their definition."""

import math

import pytest
import torch
from cleanlab.count import compute_confident_joint, get_confident_thresholds
from cleanlab.rank import get_label_quality_scores

from transferkit.similarity import top_k
from transferkit.similarity.label_quality import confident_classes, neighbor_share, robust_z, self_confidence


@pytest.fixture
def judged() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(300) % 5
    logits = torch.randn(300, 5, generator=generator)
    logits[torch.arange(300), target] += 2
    return logits.double().softmax(1), target


def test_self_confidence_is_cleanlabs(judged: tuple[torch.Tensor, torch.Tensor]) -> None:
    probability, target = judged
    oracle = get_label_quality_scores(target.numpy(), probability.numpy(), method="self_confidence")
    assert self_confidence(probability, target).numpy() == pytest.approx(oracle)


def test_confident_classes_make_up_cleanlabs_confident_joint(judged: tuple[torch.Tensor, torch.Tensor]) -> None:
    probability, target = judged
    oracle = compute_confident_joint(target.numpy(), probability.numpy(), calibrate=False)
    found = confident_classes(probability, target)
    counts = torch.zeros(5, 5, dtype=torch.int64)
    known = found >= 0
    counts.index_put_((target[known], found[known]), torch.tensor(1), accumulate=True)
    off_diagonal = ~torch.eye(5, dtype=torch.bool)  # cleanlab puts a 1 on an empty diagonal
    assert torch.equal(counts[off_diagonal], torch.from_numpy(oracle)[off_diagonal])
    thresholds = torch.from_numpy(get_confident_thresholds(target.numpy(), probability.numpy()))
    assert torch.equal(known, (probability >= thresholds - 1e-12).any(1))


def test_votes_by_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator)
    target = torch.randint(-1, 3, (40,), generator=generator)
    group = torch.arange(40)
    group[1] = group[5] = group[0]
    cosine, neighbor = top_k(rows, rows, 8, exclude_self=True)
    shares = neighbor_share(cosine, neighbor, target, group[neighbor] == group[:, None])
    for row in range(40):
        votes = {True: 0.0, False: 0.0}
        for value, other in zip(cosine[row].tolist(), neighbor[row].tolist(), strict=True):
            if group[other] != group[row] and target[other] >= 0:
                votes[bool(target[other] == target[row])] += math.exp(value / 0.07)
        assert float(shares[row]) == pytest.approx(votes[True] / sum(votes.values()), rel=1e-5)


def test_a_copy_never_votes_for_its_own_label() -> None:
    rows = torch.eye(4).repeat_interleave(3, 0)  # three copies of each of four images
    group = torch.arange(4).repeat_interleave(3)
    cosine, neighbor = top_k(rows, rows, 2, exclude_self=True)
    copies = group[neighbor] == group[:, None]
    assert neighbor_share(cosine, neighbor, torch.zeros(12, dtype=torch.int64), copies).isnan().all()


def test_robust_z_of_a_normal_distribution_is_its_z() -> None:
    values = 3 + 2 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[:10] = 1000  # a few outliers change nothing
    assert robust_z(torch.cat([values, torch.tensor([7.0])]))[-1] == pytest.approx(2, abs=0.05)
    z = robust_z(torch.tensor([1.0, torch.nan, 1.0, 2.0]))
    assert z[1].isnan() and z[3] > 1e6
    assert robust_z(torch.full((3,), torch.nan)).isnan().all()
