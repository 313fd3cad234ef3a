"""Options of the data out of range are named."""

import pytest

from transferkit.data.option_ranges import check_counts, check_fractions
from transferkit.errors import UserError


def test_counts() -> None:
    check_counts(batch_size=1, num_workers=None, views=0, n_per_class=None)
    for name, value in (("batch_size", 0), ("num_workers", -1), ("views", -1), ("n_per_class", 0)):
        with pytest.raises(UserError, match=f"`{name}` is {value}; give {value + 1} or more"):
            check_counts(**{"batch_size": 1, "num_workers": 0, "views": 0, "n_per_class": 1, name: value})


def test_fractions() -> None:
    check_fractions(val_fraction=0.0, test_fraction=0.99)
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match=f"`val_fraction` is {value}; give a number from 0 up and below 1"):
            check_fractions(val_fraction=value)
