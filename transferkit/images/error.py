"""Reason why an image cannot be used: a kind for programs and one line for people."""

import errno
from typing import Literal, NamedTuple

Kind = Literal[
    "missing",
    "denied",
    "link_loop",
    "system",  # any other error of the operating system
    "not_a_file",
    "empty",
    "truncated",
    "corrupt",
    "not_an_image",
    "too_large",
    "unsupported_pixels",
    "unsupported_format",
    "needs_package",
    "outside",  # a box that is not in its image
    "cancelled",
]
KINDS_BY_ERRNO: dict[int | None, Kind] = {errno.ENOENT: "missing", errno.EACCES: "denied", errno.ELOOP: "link_loop"}
PASSING = {"missing", "denied", "link_loop", "system", "cancelled"}
"""Kinds that say nothing about the content of a file: rights, a network drive, or memory change without a trace."""


class Fault(NamedTuple):
    """Reason why an image cannot be used.

    Attributes:
        kind: one of ``Kind``.
        detail: one short line, such as ``truncated JPEG``.
    """

    kind: Kind
    detail: str

    def __str__(self) -> str:
        """Return the line."""
        return self.detail

    @classmethod
    def of(cls, error: OSError) -> "Fault":
        """Return the reason that the operating system gives."""
        return cls(KINDS_BY_ERRNO.get(error.errno, "system"), (error.strerror or str(error)).lower())


class ImageError(Exception):
    """An image that cannot be used; its text is one short line, such as ``truncated JPEG``.

    Args:
        kind: one of ``Kind``.
        detail: the line.
    """

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(kind, detail)
        self.fault = Fault(kind, detail)

    def __str__(self) -> str:
        return self.fault.detail
