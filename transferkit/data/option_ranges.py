"""Ranges of the options of the data, and the types of options of any class."""

import math
import numbers
from collections.abc import Callable, Mapping, MutableMapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transferkit.errors import UserError, listed
from transferkit.runtime.plain_types import plain


def check_counts(batch_size: int | None, num_workers: int | None, views: int, n_per_class: int | None) -> None:
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


def make_plain(options: MutableMapping[str, Any]) -> None:
    """Convert NumPy's numbers and arrays, and paths, among options to Python's types: a checkpoint holds them."""
    options.update({name: plain(value) for name, value in options.items()})


def check_values(owner: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise for a value that is not a number, a word or a mapping where one is expected, as the command line does.

    Args:
        owner: a class.
        options: arguments of its constructor.

    Raises:
        UserError: naming the argument.
    """
    hints = get_type_hints(owner.__init__)
    for name in [name for name in options if name in hints]:  # Lightning adds names of its own
        value, hint = options[name], hints[name]
        kinds = set(get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint])
        if value is None and NoneType in kinds:
            continue
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        closed = bool(words) and str not in kinds and all(isinstance(word, str) for word in words)
        if closed and isinstance(value, str) and value not in words:
            raise UserError(f"`{name}` is {value!r}; give {listed(words, most=9)}{' or a number' * (float in kinds)}")
        if {get_origin(kind) or kind for kind in kinds} == {dict, NoneType} and not isinstance(value, Mapping):
            raise UserError(f"`{name}` is {value!r}; give a dict")
        if not kinds <= {int, float, bool, NoneType}:
            continue
        number = numbers.Real if float in kinds else numbers.Integral  # NumPy's, too
        if not isinstance(value, number):
            what = "true or false" if kinds <= {bool, NoneType} else "a number" if float in kinds else "a whole number"
            raise UserError(f"`{name}` is {value!r}; give {what}")
