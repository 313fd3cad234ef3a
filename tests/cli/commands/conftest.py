"""What the tests of commands share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a run tells its processes is not told to those of the next test."""
    yield
    for name in ("TRANSFERKIT_RUN", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
