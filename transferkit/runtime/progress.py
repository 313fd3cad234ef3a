"""Progress of long work on stderr: a bar on a terminal, in a log a line now and then."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from transferkit.runtime.verbosity import progress_wanted

log = logging.getLogger(__name__)
FIRST_LINE, NEXT_LINE = 10.0, 30.0  # seconds before the first line of a log, and between two


class Rate(ProgressColumn):
    """Steps per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate of one task so far."""
        speed = task.finished_speed or task.speed
        settled = task.finished or (task.elapsed or 0) > 1  # the first steps were prepared in queues
        return Text(f"{speed:.0f} {self.unit}/s" if speed and settled else "")


@contextmanager
def progress_bar(label: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Show the steps done, rate and time left while the block runs; yield ``advance(steps)``.

    Nothing is shown unless progress is wanted (see :mod:`~transferkit.runtime.verbosity`). The total may be unknown.
    """
    console = Console(stderr=True)
    if not progress_wanted.get() or total == 0:
        yield lambda steps: None
    elif not console.is_terminal:
        yield ProgressLines(label, total, unit).advance
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(unit))
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda steps: bar.advance(task, steps)


class LineClock:
    """When a log gets a line about long work: first after 10 s, then every 30 s.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.start = clock, clock()
        self.due = self.start + FIRST_LINE

    def seconds_if_due(self) -> float | None:
        """Return the seconds since the beginning if a line is due, and wait for the next; otherwise None."""
        now = self.clock()
        if now < self.due:
            return None
        self.due = now + NEXT_LINE
        return now - self.start


class ProgressLines:
    """Progress in a log.

    Args:
        label: what is done.
        total: number of steps, if it is known.
        unit: what a step is, in the plural.
        clock: seconds.
    """

    def __init__(
        self, label: str, total: int | None, unit: str = "images", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.clock = 0, LineClock(clock)

    def advance(self, steps: int) -> None:
        """Count steps, and log a line if one is due."""
        self.done += steps
        unfinished = self.done and self.done != self.total
        if unfinished and (seconds := self.clock.seconds_if_due()) is not None:
            log.info("%s", self.line(seconds))

    def line(self, seconds: float) -> str:
        """Return the steps done after some seconds, their rate, and the time left if the total is known."""
        rate = self.done / seconds
        counted = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        left = "" if self.total is None else f", about {minutes((self.total - self.done) / rate)} left"
        return f"{self.label}: {counted} {self.unit}, {rate_text(rate)}/s{left}"


def rate_text(rate: float) -> str:
    """Return a rate as it is shown.

    >>> rate_text(1234.5), rate_text(9.87)
    ('1,234', '9.9')
    """
    return f"{rate:,.{0 if rate >= 10 else 1}f}"


def minutes(seconds: float) -> str:
    """Return a duration in minutes and seconds.

    >>> minutes(83.6)
    '1:24'
    """
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
