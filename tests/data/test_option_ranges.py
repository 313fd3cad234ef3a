"""Options of the data out of range are named."""

from typing import Any, get_type_hints

import pytest

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.option_ranges import check_counts, check_fractions
from transferkit.errors import UserError
from transferkit.training.module import TransferModule


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


@pytest.mark.parametrize("owner", [ImageDataModule, TransferModule])
def test_an_unknown_word_is_refused_by_every_option_of_words(owner: Any) -> None:
    hints = get_type_hints(owner.__init__)
    words = {name for name, hint in hints.items() if str(hint).startswith("typing.Literal")}
    assert words >= ({"on_error", "cache", "augmentation"} if owner is ImageDataModule else {"regime", "loss"})
    for name in words:
        with pytest.raises(UserError, match=f"^`{name}` is 'frozzen'; give '"):
            owner(**{"root": "x"} if owner is ImageDataModule else {}, **{name: "frozzen"})
