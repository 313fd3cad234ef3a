"""Reasons why an image cannot be used: kinds for programs, one line for people, through pickle as well."""

import errno
import os
import pickle

import pytest

from tests import image_corpus
from transferkit.images import ImageError, decode
from transferkit.images.error import Fault


def test_an_error_is_its_line_and_survives_a_pickle() -> None:
    error = ImageError("truncated", "truncated JPEG")
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == "truncated JPEG" and again.fault == error.fault == Fault("truncated", str(error))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOENT, "missing"), (errno.EACCES, "denied"), (errno.ELOOP, "link_loop"), (errno.EIO, "system")],
)
def test_what_the_system_reports(number: int, kind: str) -> None:
    assert Fault.of(OSError(number, os.strerror(number))) == (kind, os.strerror(number).lower())


def test_the_kind_of_each_broken_file_goes_with_its_line() -> None:
    """A line that begins with a kind's own word is of that kind, so that scans and messages agree."""
    for case in image_corpus.broken():
        with pytest.raises(ImageError) as caught:
            decode(case.data)
        kind, detail = caught.value.fault
        assert "\n" not in detail and detail == str(caught.value)
        if kind in ("truncated", "corrupt", "empty"):
            assert detail.startswith(kind), case.name
