"""Pillow's warnings and log lines about broken metadata, silenced while one block runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from transferkit.runtime.shared_change import SharedChange


def pillow_silenced() -> AbstractContextManager[None]:
    """Hide what Pillow warns of and logs while it reads a header; what was set before is restored.

    ``ImageError`` reports what is wrong with a picture, once, and ``MAX_PIXELS`` decides what is too large. Broken
    metadata (EXIF, multi-picture index, animation) costs a picture nothing but its orientation.
    """
    return silence.made()


@contextmanager
def silenced() -> Iterator[None]:
    """Ignore Pillow's warnings, and keep its log lines from all handlers.

    A logger's level would do, but changing it clears what all loggers of the process remember, which takes longer than
    reading a header.
    """
    log = logging.getLogger("PIL")
    propagate, handlers = log.propagate, log.handlers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|transferkit\.images)\.")  # of a caller, by their stacklevel
        log.propagate, log.handlers = False, [logging.NullHandler()]
        try:
            yield
        finally:
            log.propagate, log.handlers = propagate, handlers


silence = SharedChange(silenced)
