"""Pillow is silenced while a header is read, and only then."""

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings

import pytest

from transferkit.images.silence import pillow_silenced


def test_only_inside_of_the_block(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("PIL.TiffImagePlugin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pillow_silenced():
            log.error("inside")
            warnings.warn_explicit("inside", UserWarning, "Image.py", 1, module="PIL.Image")
            with pytest.raises(UserWarning, match="another's"):
                warnings.warn("another's", stacklevel=1)
    log.error("outside")
    assert caplog.messages == ["outside"]


def test_threads_do_not_wait_for_each_other_and_the_last_one_restores(caplog: pytest.LogCaptureFixture) -> None:
    log, both = logging.getLogger("PIL.TiffImagePlugin"), threading.Barrier(2, timeout=20)
    filters = list(warnings.filters)

    def read() -> None:
        with pillow_silenced():
            both.wait()  # both are inside
            log.error("inside")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    log.error("outside")
    assert not both.broken and caplog.messages == ["outside"] and warnings.filters == filters


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_not_silenced_by_a_thread_that_it_lacks() -> None:
    begun, end = threading.Event(), threading.Event()

    def read() -> None:
        with pillow_silenced():
            begun.set()
            end.wait(20)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(20)
    context = multiprocessing.get_context("fork")
    propagates = context.Value("b", False)
    child = context.Process(target=lambda: setattr(propagates, "value", logging.getLogger("PIL").propagate))
    child.start()
    child.join(20)
    assert propagates.value and not logging.getLogger("PIL").propagate
    end.set()
    thread.join(20)
    assert logging.getLogger("PIL").propagate


def test_importing_changes_no_logger() -> None:
    code = "import logging, transferkit.images; assert logging.getLogger('PIL').level == logging.NOTSET"
    subprocess.run([sys.executable, "-c", code], check=True)
