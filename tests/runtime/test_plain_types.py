"""NumPy's numbers and paths as Python's types; what else a value holds is named."""

import enum
import io
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from transferkit.runtime.plain_types import not_plain, plain


class Color(enum.StrEnum):
    RED = "red"


class Pair(NamedTuple):
    a: int
    b: int


def test_numpy_and_paths_become_pythons_types() -> None:
    given = {"a": np.float32(0.5), "b": [np.int64(3), (np.bool_(True), np.str_("x"))], "c": Path("p"), np.int8(1): None}
    found = plain(given | {"d": np.arange(3)})
    assert found == {"a": 0.5, "b": [3, (True, "x")], "c": "p", 1: None, "d": [0, 1, 2]} and not not_plain(found)
    assert yaml.safe_load(yaml.safe_dump(plain({"d": np.logspace(-2, 0, 3)}))) == {"d": [0.01, 0.1, 1.0]}
    assert isinstance(plain(np.arange(3), arrays=False), np.ndarray)
    other = object()
    assert plain(other) is other


VALUES: list[Any] = [
    1, True, 0.5, 1j, "x", b"x", bytearray(b"x"), None, [1], (1,), {1}, {"a": {"b": [2]}}, Counter("a"),
    np.float64(1), np.arange(2), Path("x"), Color.RED, Pair(1, 2), timedelta(1), deque([1]), frozenset([1]),
    defaultdict(list), range(3), slice(1), {"a": [Color.RED]}, {Color.RED: 1}, OrderedDict(a=Path("x")),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_is_what_torch_reads_without_running_code(value: Any) -> None:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
        readable = True
    except Exception:
        readable = False
    assert (not_plain(value) is None) is readable
