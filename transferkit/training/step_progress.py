"""Progress of several long jobs side by side: bars on a terminal, otherwise lines with the time left."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from transferkit.runtime.progress import minutes

log = logging.getLogger(__name__)
SECONDS = 15.0  # between two lines of a long step


@dataclass
class Job:
    """How far a job is.

    Attributes:
        total: its amount of work, in any unit.
        done: the part of it that is done.
        step: what it does now; empty before it starts.
        start: when it started, in seconds.
    """

    total: float
    done: float = 0.0
    step: str = ""
    start: float = 0.0


class StepProgress:
    """Show the current step of each job and the time left, as a context manager.

    Args:
        totals: name of each job -> its amount of work.
        clock: returns seconds.
    """

    def __init__(self, totals: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self.jobs = {name: Job(total) for name, total in totals.items()}
        self.clock = clock
        self.start = self.printed = clock()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"))
        self.bars = Progress(
            *columns, *times, console=console, disable=not console.is_terminal, speed_estimate_period=60
        )
        self.bar_of = {name: self.bars.add_task(name, total=job.total) for name, job in self.jobs.items()}

    def __enter__(self) -> "StepProgress":
        """Show the bars."""
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bars as they are."""
        self.bars.stop()

    def begin(self, name: str, step: str) -> None:
        """Show the next step of a job."""
        job = self.jobs[name]
        if not job.step:
            job.start = self.clock()
        job.step = step
        self.bars.update(self.bar_of[name], description=f"{name}: {step}")
        self.print_line()

    def advance(self, name: str, amount: float) -> None:
        """Add work that a job has done."""
        self.jobs[name].done += amount
        self.bars.advance(self.bar_of[name], amount)
        if self.clock() - self.printed >= SECONDS:
            self.print_line()

    def print_line(self) -> None:
        """Print the step of each job, unless there are bars."""
        if self.bars.disable:
            self.printed = self.clock()
            log.info(self.line())

    def line(self) -> str:
        """Return elapsed and estimated time, and the step of each job that has started."""
        steps = "; ".join(f"{name}: {job.step}" for name, job in self.jobs.items() if job.step)
        left = self.seconds_left()
        said = "" if left is None else f"about {minutes(left)} left, "
        return f"{minutes(self.clock() - self.start)} elapsed, {said}{steps}"

    def seconds_left(self) -> float | None:
        """Return the seconds until the slowest job ends at its speed so far; None if one has done nothing yet."""
        if not all(job.done for job in self.jobs.values()):
            return None
        now = self.clock()
        return max((now - job.start) * (job.total - job.done) / job.done for job in self.jobs.values())
