"""The losses of a distillation are their definitions, and 0 where the student gives what the teacher gives."""

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics.pairwise import cosine_similarity

from transferkit.training.distill_losses import center_of, direction_loss, on_grid, relation_loss


def test_direction_is_one_minus_the_cosine() -> None:
    one, other = torch.randn(5, 7), torch.randn(5, 7)
    cosines = cosine_similarity(one.numpy(), other.numpy()).diagonal()
    np.testing.assert_allclose(direction_loss(one, other), 1 - cosines, atol=1e-6)


def test_direction_of_patches_is_their_mean() -> None:
    one, other = torch.randn(5, 4, 7), torch.randn(5, 4, 7)
    each = [direction_loss(one[:, cell], other[:, cell]) for cell in range(4)]
    torch.testing.assert_close(direction_loss(one, other), torch.stack(each).mean(0))


def test_relation_is_the_divergence_of_the_softmax_over_cosines() -> None:
    one, other, others = torch.randn(5, 7), torch.randn(5, 7), torch.randn(9, 7)
    own, theirs = (softmax(cosine_similarity(rows.numpy(), others.numpy()) / 0.3, axis=1) for rows in (one, other))
    found = relation_loss(one, other, others, temperature=0.3)
    np.testing.assert_allclose(found, entropy(theirs, own, axis=1), atol=1e-5)


def test_a_student_equal_to_its_teacher_has_no_loss() -> None:
    rows, others = torch.randn(5, 7), torch.randn(9, 7)
    for scaled in (rows, 3 * rows):  # lengths are not compared
        torch.testing.assert_close(direction_loss(scaled, rows), torch.zeros(5), atol=1e-6, rtol=0)
        torch.testing.assert_close(relation_loss(scaled, rows, others), torch.zeros(5), atol=1e-5, rtol=0)


def test_a_grid_has_the_means_of_its_cells() -> None:
    features = torch.randn(2, 3, 4, 6)
    cells = features.numpy().reshape(2, 3, 2, 2, 3, 2).mean((3, 5))  # 2 x 3 cells of 2 x 2 pixels
    np.testing.assert_allclose(on_grid(features, (2, 3)), cells.reshape(2, 3, 6).transpose(0, 2, 1), atol=1e-6)


def test_the_center_is_the_mean() -> None:
    rows = torch.randn(50, 3) + 100
    np.testing.assert_allclose(center_of(rows), rows.numpy().mean(0, dtype=np.float64), rtol=1e-6)
