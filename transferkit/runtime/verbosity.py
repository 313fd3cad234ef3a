"""Whether long work shows its progress: on the command line, and from Python if it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from transferkit.errors import UserError

progress_wanted = ContextVar("progress_wanted", default=False)


@contextmanager
def showing_progress(wanted: bool = True) -> Iterator[None]:
    """Let progress bars within the block be shown, or not.

    Raises:
        UserError: ``wanted`` is not a bool: say images, given to a function that takes none.
    """
    if not isinstance(wanted, bool):
        raise UserError(f"progress is of type {type(wanted).__name__}; give true or false")
    token = progress_wanted.set(wanted)
    try:
        yield
    finally:
        progress_wanted.reset(token)
