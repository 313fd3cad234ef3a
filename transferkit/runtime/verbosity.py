"""Whether long work shows its progress: on the command line, and from Python if it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

progress_wanted = ContextVar("progress_wanted", default=False)


@contextmanager
def showing_progress(wanted: bool = True) -> Iterator[None]:
    """Let progress bars within the block be shown, or not."""
    token = progress_wanted.set(wanted)
    try:
        yield
    finally:
        progress_wanted.reset(token)
