"""The weight of each class, and of the images that have a label."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from transferkit.data.class_weights import loss_weights
from transferkit.errors import UserError


def test_balanced_classes_are_scikit_learns() -> None:
    target = torch.tensor([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=target.numpy())
    weights = loss_weights("balanced", target, ["a", "b", "c"])
    assert weights is not None and weights.tolist() == pytest.approx(expected.tolist())


def test_balanced_labels_weigh_both_sides_the_same() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    weights = loss_weights("balanced", target, ["a", "b"], "labels")
    assert weights is not None
    assert (weights * target.sum(0)).tolist() == (1 - target).sum(0).tolist() and weights.tolist() == [3.0, 1.0]
    given = loss_weights([2.0, 5.0], target, ["a", "b"], "labels")
    assert given is not None and given.tolist() == [2.0, 5.0]


def test_weights_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(UserError, match="`class_weights` is for classes, but the data has a number per image"):
        loss_weights("balanced", torch.rand(3, 1), ["target"], "number")
    with pytest.raises(UserError, match="has 1 numbers for 2 classes"):
        loss_weights([1.0], torch.rand(3, 2), ["a", "b"], "labels")
