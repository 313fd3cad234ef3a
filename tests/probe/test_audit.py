"""An audit finds what was planted: wrong labels as well as cleanlab, outliers, bursts, bad pictures."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from transferkit.data.embeddings import Embeddings
from transferkit.images.quality import PictureStats
from transferkit.probe import audit as audits
from transferkit.probe.audit import Audit, audit_embeddings, calibrated, nearest
from transferkit.probe.out_of_fold import out_of_fold
from transferkit.similarity import unit_rows

PAIRS = {0: 6, 6: 0, 1: 7, 7: 1, 3: 8, 8: 3, 4: 9, 9: 4, 2: 5, 5: 2}


def table_of(rows: torch.Tensor, labels: list[str | None]) -> Embeddings:
    return Embeddings(rows, [f"{number:05d}.png" for number in range(len(rows))], labels, [None] * len(rows), {})


def flipped(target: np.ndarray, rate: float, seed: int, similar: bool) -> np.ndarray:
    """Class numbers of which some are another class's: any other one, or the one most like it."""
    rng = np.random.default_rng(seed)
    other = np.array([PAIRS[c] for c in target]) if similar else (target + rng.integers(1, 10, len(target))) % 10
    return np.where(rng.random(len(target)) < rate, other, target)


@pytest.mark.parametrize("similar", [False, True])
@pytest.mark.parametrize(
    "rate", [pytest.param(0.05, marks=pytest.mark.slow), 0.1, pytest.param(0.2, marks=pytest.mark.slow)]
)
def test_flipped_labels_are_ranked_as_well_as_by_cleanlab(rate: float, similar: bool) -> None:
    digits = load_digits()
    chosen = np.random.default_rng(0).permutation(1797)[:700]
    rows, target = torch.from_numpy(digits.data[chosen]).float(), digits.target[chosen]
    for seed in range(2):
        noisy = flipped(target, rate, seed, similar)
        found = audit_embeddings(table_of(rows, [str(label) for label in noisy]))
        group = nearest(unit_rows(rows)).group
        probability, _ = out_of_fold(unit_rows(rows), torch.from_numpy(noisy), 10, group)
        oracle = get_label_quality_scores(noisy, probability.double().numpy())
        wrong = noisy != target
        ours = np.array([found.quality[f"{number:05d}.png"] for number in range(len(rows))])
        assert roc_auc_score(wrong, -ours) >= roc_auc_score(wrong, -oracle) - 0.005
        worst = np.argsort(ours)[: wrong.sum()]
        assert wrong[worst].mean() >= 0.8  # precision at the number of flips
        named = {int(issue.path[:5]): issue.suggested for issue in found.issues if issue.issue == "label"}
        caught = [number for number in named if wrong[number]]
        assert len(caught) > 0.7 * wrong.sum()
        assert np.mean([named[number] == str(target[number]) for number in caught]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("similar", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_all_digits_five_seeds(rate: float, similar: bool) -> None:
    digits = load_digits()
    rows = torch.from_numpy(digits.data).float()
    group = nearest(unit_rows(rows)).group
    for seed in range(5):
        noisy = flipped(digits.target, rate, seed, similar)
        found = audit_embeddings(table_of(rows, [str(label) for label in noisy]))
        probability, _ = out_of_fold(unit_rows(rows), torch.from_numpy(noisy), 10, group)
        oracle = get_label_quality_scores(noisy, probability.double().numpy())
        wrong = noisy != digits.target
        ours = np.array(list(found.quality.values()))
        assert roc_auc_score(wrong, -ours) >= roc_auc_score(wrong, -oracle) - 0.005


def clusters(count: int = 60, classes: int = 3) -> tuple[torch.Tensor, list[str | None]]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % classes
    rows = 4 * torch.eye(16)[target] + torch.randn(count, 16, generator=generator)
    return rows, [f"class {number}" for number in target.tolist()]


def of_kind(found: Audit, kind: str) -> list[str]:
    return [issue.path for issue in found.issues if issue.issue == kind]


def test_a_planted_outlier_comes_first() -> None:
    rows, labels = clusters()
    rows[17] = -30 * torch.ones(16) * torch.tensor([1.0, -1.0]).repeat(8)
    assert of_kind(audit_embeddings(table_of(rows, labels)), "outlier")[0] == "00017.png"


def test_a_burst_is_found_and_its_copies_do_not_vouch_for_each_other() -> None:
    rows, labels = clusters()
    labels[3] = labels[0 + 1]  # wrong: row 3 lies among class 0
    for copy in (30, 33, 36):
        rows[copy], labels[copy] = rows[3], labels[3]  # and so are its copies
    found = audit_embeddings(table_of(rows, labels))
    assert of_kind(found, "burst") == ["00030.png", "00033.png", "00036.png"]
    worst = sorted(found.quality, key=lambda path: found.quality[path])[:4]
    assert sorted(worst) == ["00003.png", "00030.png", "00033.png", "00036.png"]
    assert max(found.quality[path] for path in worst) < 0.25  # though three others say the same


def test_images_that_near_duplicates_merely_link_vote() -> None:
    """On an arc each image is like the next, and so all are linked, but those at some distance are no copies."""
    angle = torch.linspace(0, 2, 40)
    rows = torch.zeros(240, 12)
    for arc in range(6):
        rows[40 * arc : 40 * arc + 40, 2 * arc : 2 * arc + 2] = torch.stack([angle.cos(), angle.sin()], 1)
    labels: list[str | None] = ["even" if row // 40 % 2 == 0 else "odd" for row in range(240)]
    labels[20] = "odd"
    neighbors = nearest(unit_rows(rows))
    assert len(neighbors.group.unique()) == 6 and neighbors.together.any() and not neighbors.together.all(1).any()
    found = audit_embeddings(table_of(rows, labels))
    assert min(found.quality, key=lambda path: found.quality[path]) == "00020.png"


def test_issues_are_ranked_and_nothing_is_changed() -> None:
    rows, labels = clusters(90)
    labels[4] = "class 0"
    table = table_of(rows.clone(), list(labels))
    found = audit_embeddings(table)
    assert torch.equal(table.embedding, rows) and list(table.labels) == labels
    for kind in audits.KINDS:
        scores = [issue.score for issue in found.issues if issue.issue == kind]
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert sum(found.counts().values()) == len(found.issues)
    again = audit_embeddings(table)
    assert again.issues == found.issues


@pytest.mark.parametrize("labels", [[None] * 12, ["one"] * 12, [f"class {n}" for n in range(12)]])
def test_labels_that_cannot_be_judged_are_told(labels: list[str | None]) -> None:
    rows = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    found = audit_embeddings(table_of(rows, labels))
    assert found.quality == {} and of_kind(found, "label") == []
    assert any("labels were not judged" in line for line in found.remarks)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count: int) -> None:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    assert audit_embeddings(table_of(rows, ["a", "b", "a"][:count])).rows == count


def test_pictures_beyond_the_limits_are_named() -> None:
    rows, labels = clusters(12)
    usual = PictureStats(high=0.9, low=0.1, sharpness=400.0, entropy=7.0, aspect=1.3)
    odd = {
        "dark": usual._replace(high=0.1),
        "bright": usual._replace(low=0.95),
        "blurred": usual._replace(sharpness=20.0),
        "low-information": usual._replace(entropy=1.0),
        "odd-aspect": usual._replace(aspect=6.0),
    }
    pictures = {f"{number:05d}.png": usual for number in range(12)}
    pictures |= {f"{number:05d}.png": stats for number, stats in enumerate(odd.values())}
    found = audit_embeddings(table_of(rows, labels), pictures)
    for number, kind in enumerate(odd):
        assert of_kind(found, kind) == [f"{number:05d}.png"]


def test_the_table_may_be_used_up() -> None:
    vectors = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    labels = [f"class {row % 3}" for row in range(60)]
    table = Embeddings(vectors, [f"{row}.jpg" for row in range(60)], labels, [None] * 60, {})
    kept = audit_embeddings(table)
    spent = audit_embeddings(replace(table, embedding=vectors.clone()), in_place=True)
    assert spent == kept and kept.quality


@pytest.mark.slow
def test_an_audit_of_embeddings_does_not_load_torchvision() -> None:
    code = "import sys, transferkit.probe.audit_files, transferkit.reports.report; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_images_are_ambiguous_by_probabilities_that_come_true() -> None:
    """Labels drawn from a softmax: whatever a probe's probabilities are sharpened or softened by, it is found again."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=draw, dtype=torch.float64)
    true = logits.softmax(1)
    target = torch.multinomial(true, 1, generator=draw).squeeze(1)
    for scale in (0.1, 1.0, 4.0):
        assert (calibrated((scale * logits).softmax(1), target) - true).abs().max() < 0.02
    sure = torch.eye(3, dtype=torch.float64)[target]
    assert calibrated(sure, target).isfinite().all()
