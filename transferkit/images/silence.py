"""Pillow's warnings and log lines about broken metadata, silenced while one block runs."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

lock = threading.Lock()
inside = 0
undo = ExitStack()


@contextmanager
def pillow_silenced() -> Iterator[None]:
    """Hide what Pillow warns of and logs while it reads a header; what was set before is restored.

    ``ImageError`` reports what is wrong with a picture, once, and ``MAX_PIXELS`` decides what is too large. Broken
    metadata (EXIF, multi-picture index, animation) costs a picture nothing but its orientation.

    Filters and loggers belong to the whole process: of several threads, the first one sets them and the last one
    restores them, so that none waits for another to read its header.
    """
    global inside
    with lock:
        if not inside:
            silence()
        inside += 1
    try:
        yield
    finally:
        with lock:
            inside -= 1
            if not inside:
                undo.close()


def silence() -> None:
    """Ignore Pillow's warnings, and keep its log lines from all handlers.

    A logger's level would do, but changing it clears what all loggers of the process remember, which takes longer than
    reading a header.
    """
    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module=r"(PIL|transferkit\.images)\.")  # of a caller, by their stacklevel
    log = logging.getLogger("PIL")
    undo.callback(setattr, log, "propagate", log.propagate)
    undo.callback(setattr, log, "handlers", log.handlers)
    log.propagate, log.handlers = False, [logging.NullHandler()]


def restore_in_child() -> None:
    """Restore what threads of the parent had set: a forked process has none of them."""
    global inside
    inside = 0
    undo.close()
    lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=restore_in_child)
