"""How fit tells its run directory to the processes that Lightning starts; tests/processes runs several."""

import os

import pytest

from transferkit.cli.commands.fit import RUN
from transferkit.runtime.processes import environment_variable


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEFORE", "1")
    with environment_variable("BEFORE", "2"), environment_variable(RUN, "runs/fit/0"):
        assert (os.environ["BEFORE"], os.environ[RUN]) == ("2", "runs/fit/0")
    assert os.environ["BEFORE"] == "1" and RUN not in os.environ
