"""Pillow is silenced while a header is read, and only then."""

import logging
import subprocess
import sys
import warnings

import pytest

from transferkit.images.silence import pillow_silenced


def test_only_inside_of_the_block(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("PIL.TiffImagePlugin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pillow_silenced():
            log.error("inside")
            warnings.warn("inside", stacklevel=1)
    log.error("outside")
    assert caplog.messages == ["outside"]


def test_importing_changes_no_logger() -> None:
    code = "import logging, transferkit.images; assert logging.getLogger('PIL').level == logging.NOTSET"
    subprocess.run([sys.executable, "-c", code], check=True)
