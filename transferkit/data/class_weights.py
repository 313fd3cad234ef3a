"""The weight of each class in the loss, as the option ``class_weights`` asks for it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from transferkit.data.targets import Kind
from transferkit.errors import UserError

Weights = Literal["balanced"] | Sequence[float] | None


def loss_weights(given: Weights, target: Tensor, names: Sequence[str], kind: Kind = "class") -> Tensor | None:
    """Return the weight of each class in the loss.

    Args:
        given: ``balanced``, a number per class, or None.
        target: of the training images: int64 (N,) class numbers, or float (N, classes) of several labels.
        names: of the classes.
        kind: of the targets. Of several labels the weights are those of the images that have the label; balanced, both
            sides weigh the same.

    Returns:
        Float32 (classes,), of classes with mean 1 over the training images; None for equal ones.

    Raises:
        UserError: a list of another length than the classes, weights below 0 or all 0, or no classes.
    """
    if given is None:
        return None
    if kind == "number":
        raise UserError("`class_weights` is for classes, but the data has a number per image; leave it out")
    if given == "balanced":
        if kind == "labels":
            positive = target.sum(0)
            return (len(target) - positive) / positive.clamp(min=1)
        counts = torch.bincount(target, minlength=len(names))
        return counts.sum() / (len(counts) * counts.clamp(min=1)).float()
    if len(given) != len(names):
        every = ", ".join(names)
        raise UserError(
            f"`class_weights` has {len(given)} numbers for {len(names)} classes; give one for each of {every}"
        )
    if min(given) < 0 or max(given) == 0:
        raise UserError(f"`class_weights` is {given}; give numbers from 0 up, not all 0")
    weights = torch.tensor([float(weight) for weight in given])
    if kind == "labels":
        return weights
    mean = weights[target].mean()
    if mean == 0:
        raise UserError(f"`class_weights` is {given}; give a class of train a weight above 0")
    return weights / mean
