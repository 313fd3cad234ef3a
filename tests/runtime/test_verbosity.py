"""Progress is shown where it is asked for, and nowhere else."""

import pytest

from transferkit.runtime.progress import progress_bar
from transferkit.runtime.verbosity import progress_wanted, showing_progress


def shown(capfd: pytest.CaptureFixture[str], total: int | None = 3) -> bool:
    with progress_bar("working", total) as advance:
        advance(1)
    out, error = capfd.readouterr()
    assert out == ""
    return "working" in error


def test_a_bar_is_asked_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
    assert not shown(capfd)
    with showing_progress():
        assert shown(capfd) and shown(capfd, None) and not shown(capfd, 0)
        with showing_progress(False):
            assert not shown(capfd)
        assert progress_wanted.get()
    assert not shown(capfd)
    monkeypatch.delenv("FORCE_COLOR")
    with showing_progress():
        assert not shown(capfd), "not a terminal"
