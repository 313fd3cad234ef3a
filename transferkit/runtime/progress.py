"""A progress bar on stderr for long work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from transferkit.runtime.verbosity import progress_wanted


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
    """Show a bar with rate and time left while the block runs; yield ``advance(steps)``.

    Nothing is drawn unless progress is wanted (see :mod:`~transferkit.runtime.verbosity`) and stderr is a terminal, so
    that logs stay readable. The total may be unknown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(unit), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not (progress_wanted.get() and console.is_terminal) or total == 0
    with Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.advance(task, steps)
