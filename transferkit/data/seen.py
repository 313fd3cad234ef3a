"""Which images a classifier was fitted on: hashes of their paths, stored with it as one short text."""

from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from transferkit.errors import UserError


def remember_paths(paths: Iterable[str], earlier: str = "") -> str:
    """Return hashes of paths, and of those remembered earlier, as text: eleven characters per path.

    Args:
        paths: relative to the folder of the data.
        earlier: what this function returned for other paths.
    """
    return b64encode(np.union1d(hashes(paths), read_hashes(earlier)).tobytes()).decode()


def count_seen(paths: Iterable[str], remembered: str) -> int:
    """Return how many of the paths are among those that :func:`remember_paths` was given.

    Raises:
        ValueError: ``remembered`` is not a text of that function.
    """
    return len(np.intersect1d(hashes(paths), read_hashes(remembered)))


def check_unseen(held_out: Mapping[str, Collection[str]], remembered: str) -> None:
    """Raise if images to select or report on are among those that a trained head was fitted on.

    Args:
        held_out: split -> paths.
        remembered: text of :func:`remember_paths` that is stored with the head.

    Raises:
        UserError: some are; with their number and split.
    """
    for split, paths in held_out.items():
        if seen := count_seen(paths, remembered):
            raise UserError(
                f"{seen} of the {len(paths)} images of {split} were used to fit the head to start from; give the "
                'splits that it was fitted with as `splits`, or start from a new head with `head="none"`'
            )


def hashes(paths: Iterable[str]) -> NDArray[np.int64]:
    """Return the first 8 bytes of each path's BLAKE2b hash."""
    return np.array(
        [int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little", signed=True) for path in paths],
        dtype="<i8",
    )


def read_hashes(remembered: str) -> NDArray[np.int64]:
    """Return the hashes in a text."""
    return np.frombuffer(b64decode(remembered, validate=True), dtype="<i8")
