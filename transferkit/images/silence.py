"""Pillow's warnings and log lines about broken metadata, silenced while one block runs."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Filters of warnings belong to the whole process, so threads take turns; a forked process never inherits the turn.
turn = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=turn.acquire, after_in_parent=turn.release, after_in_child=turn.release)


@contextmanager
def pillow_silenced() -> Iterator[None]:
    """Hide what Pillow warns of and logs while it reads a header; what was set before is restored.

    ``ImageError`` reports what is wrong with a picture, once, and ``MAX_PIXELS`` decides what is too large. Broken
    metadata (EXIF, multi-picture index, animation) costs a picture nothing but its orientation.
    """
    log = logging.getLogger("PIL")
    with turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)
