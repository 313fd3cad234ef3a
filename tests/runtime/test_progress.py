"""Lines of progress in a log, by a clock that the test moves."""

import logging

import pytest

from transferkit.runtime.progress import ProgressLines, progress_bar
from transferkit.runtime.verbosity import showing_progress


def lines(caplog: pytest.LogCaptureFixture, total: int | None, steps: int, seconds_each: float) -> list[str]:
    now = 0.0
    with caplog.at_level(logging.INFO, "transferkit"):
        progress = ProgressLines("embedding", total, clock=lambda: now)
        for _ in range(steps):
            now += seconds_each
            progress.advance(32)
    return [record.getMessage() for record in caplog.records]


def test_the_first_line_after_ten_seconds_then_every_thirty(caplog: pytest.LogCaptureFixture) -> None:
    found = lines(caplog, 3200, 100, 1.0)
    assert found == [
        "embedding: 320 of 3,200 images, 32/s, about 1:30 left",
        "embedding: 1,280 of 3,200 images, 32/s, about 1:00 left",
        "embedding: 2,240 of 3,200 images, 32/s, about 0:30 left",
    ]


def test_short_work_is_silent_and_an_unknown_total_has_no_time_left(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, 320, 10, 0.9) == []
    assert lines(caplog, None, 2, 8.0) == ["embedding: 64 images, 4.0/s"]


def test_nothing_is_logged_unasked(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.runtime.progress.FIRST_LINE", 0.0)
    for wanted in (False, True):
        with (
            caplog.at_level(logging.INFO, "transferkit"),
            showing_progress(wanted),
            progress_bar("work", 10) as advance,
        ):
            advance(1)
        assert bool(caplog.records) is wanted
