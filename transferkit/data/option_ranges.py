"""Ranges of the options of the data."""

import math

from transferkit.errors import UserError


def check_counts(batch_size: int, num_workers: int | None, views: int, n_per_class: int | None) -> None:
    """Validate numbers of images and processes.

    Raises:
        UserError: one is too small.
    """
    least = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
    least |= {"views": (views, 0), "n_per_class": (n_per_class, 1)}
    for name, (value, low) in least.items():
        if value is not None and value < low:
            raise UserError(f"`{name}` is {value}; give {low} or more")


def check_fractions(**fractions: float) -> None:
    """Validate shares, even if splits are given and none is drawn.

    Raises:
        UserError: one is not in [0, 1).
    """
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise UserError(f"`{name}` is {value}; give a number from 0 up and below 1")


def check_mixing(**alphas: float) -> None:
    """Validate parameters of Beta distributions, 0 for none.

    Raises:
        UserError: one is below 0, or not finite.
    """
    for name, value in alphas.items():
        if not 0 <= value < math.inf:
            raise UserError(f"`{name}` is {value}; give a number from 0 up, 0 for none")
