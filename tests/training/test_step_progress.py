"""Progress of jobs side by side: elapsed and remaining time, and each job's step."""

import logging

import pytest

from transferkit.training.step_progress import SECONDS, StepProgress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_that_of_the_slowest_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "transferkit")
    clock = Clock()
    with StepProgress({"a": 10, "b": 30}, clock) as progress:
        progress.begin("a", "walks")
        clock.now += 20
        progress.advance("a", 5)
        progress.begin("b", "runs")
        clock.now += 20
        progress.advance("b", 10)  # 20 s for a third: 40 s left, as for the other half of a
        clock.now += SECONDS / 3
        progress.advance("b", 1)  # too soon for a line
        assert progress.seconds_left() == pytest.approx(45)  # of a, which has done half in 45 s
    assert [record.getMessage() for record in caplog.records] == [
        "0:00 elapsed, a: walks",
        "0:20 elapsed, a: walks",
        "0:20 elapsed, a: walks; b: runs",
        "0:40 elapsed, about 0:40 left, a: walks; b: runs",
    ]
