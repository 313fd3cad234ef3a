"""Plain types: what YAML, JSON and a checkpoint that is read without running code can hold."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import PurePath
from types import NoneType
from typing import Any

SINGLE = (NoneType, bool, int, float, complex, str, bytes, bytearray)
SEVERAL = (list, tuple, set, dict, OrderedDict, Counter)


def plain(value: Any, arrays: bool = True) -> Any:
    """Convert NumPy's numbers and arrays, and paths, to Python's types, also within lists, tuples and dicts.

    >>> import numpy as np
    >>> plain({"rates": np.array([1, 2]), "size": (np.int64(3), "x")})
    {'rates': [1, 2], 'size': (3, 'x')}

    Args:
        value: what has another type is returned as it is.
        arrays: whether arrays become lists; otherwise they stay.
    """
    import numpy as np  # here: the help of a command imports this module, and needs no numpy

    if isinstance(value, np.generic) or (arrays and isinstance(value, np.ndarray)):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if type(value) in (list, tuple):
        return type(value)(plain(each, arrays) for each in value)
    if type(value) is dict:
        return {plain(key): plain(each, arrays) for key, each in value.items()}
    return value


def not_plain(value: Any, others: tuple[type, ...] = ()) -> str | None:
    """Return the name of the first type in a value that is not plain; None if all are.

    >>> not_plain({"a": [1, range(3)]})
    'range'

    Args:
        value: with what is in it.
        others: types that count as plain, too, with their subclasses.
    """
    if type(value) in SINGLE or isinstance(value, others):
        return None
    if type(value) not in SEVERAL:
        return type(value).__name__
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value
    return next((found for part in parts if (found := not_plain(part, others))), None)
