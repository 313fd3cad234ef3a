"""Several machines are only waited for where something starts their processes."""

import pytest

from transferkit.errors import UserError
from transferkit.runtime import processes

SAID = "`num_nodes` is 2, but nothing here starts the processes of other machines; start this command with torchrun"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def test_machines_that_nobody_starts_are_refused() -> None:
    for nodes in (None, 0, 1):
        processes.check_nodes(nodes)
    with pytest.raises(UserError, match=SAID):
        processes.check_nodes(2)
    with pytest.raises(UserError, match=SAID), processes.start(1, 2, "cpu"):
        pass


@pytest.mark.parametrize("name", processes.LAUNCHERS)
def test_whatever_starts_them_is_believed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    processes.check_nodes(2)
