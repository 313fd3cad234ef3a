"""Kinds of findings of a scan: how bad each is, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from transferkit.data.image_table import ImageTable

Severity = Literal["error", "note"]


class Kind(NamedTuple):
    """Severity and remedy: an ``error`` would stop or spoil training; a ``note`` is handled, but worth knowing."""

    severity: Severity
    remedy: str


BROKEN = 'repair or delete, or train with `on_error="skip"`'

KINDS = {
    "unreadable": Kind("error", BROKEN),
    "truncated": Kind("error", f"copy it again; otherwise {BROKEN}"),
    "zero-byte": Kind("error", f"copy it again; otherwise {BROKEN}"),
    "too-large": Kind("error", "scale it down or delete it: it would take too much memory or time"),
    "unsupported-pixels": Kind("error", "convert to 8 or 16 bits per channel, in PNG or plain TIFF"),
    "unsupported-format": Kind("error", "convert to PNG or JPEG"),
    "needs-package": Kind("error", "install the package in the detail, or convert to JPEG"),
    "permission-denied": Kind("error", "change the rights of the file or folder"),
    "unreadable-folder": Kind("error", "repair or move the folder"),
    "broken-link": Kind("error", "repair or delete the link: its target is missing or a loop"),
    "missing": Kind("error", "put the file back or delete its row"),
    "name-not-utf8": Kind("error", "rename the file or folder"),
    "faulty-row": Kind("error", "correct or delete the row of the manifest"),
    "label-conflict": Kind("error", "keep the copy with the right label: the same bytes have two"),
    "leak": Kind("error", "keep one copy: the same bytes are, or may be drawn, on both sides of a split"),
    "group-leak": Kind("error", "move the group to one split: its images are on two sides"),
    "class-case": Kind("error", "give the class one spelling: these count as two classes"),
    "empty-folder": Kind("error", "fill it or delete it: it stands for a class or a split"),
    "untrainable": Kind("error", "see the detail"),
    "duplicate": Kind("note", "keep one copy: the same bytes count twice in one split"),
    "no-labels": Kind("note", "enough to embed or predict; to train, use one folder per class"),
    "unsorted": Kind("note", "if it is not a class, sort its images, or name the others with `classes`"),
    "one-group": Kind("note", "add images of another group: those of this class can only be on one side of a split"),
    "imbalance": Kind("note", 'add images, or train with `class_weights="balanced"`'),
    "animated": Kind("note", "none needed: the first picture is used"),
    "rotated": Kind("note", "none needed: turned upright by its EXIF orientation"),
    "odd-mode": Kind("note", "none needed: converted to RGB, transparency to white"),
    "blank": Kind("note", "check whether something is missing: all pixels have one color"),
    "tiny": Kind("note", "check whether it is a thumbnail or an icon"),
    "wrong-extension": Kind("note", "rename it: other tools may trust the extension"),
    "no-extension": Kind("note", "rename it; otherwise it is left out"),
    "name-case": Kind("note", "rename one: where case does not count, one overwrites the other"),
    "name-unicode": Kind("note", "rename one: both look the same; such classes are read as one"),
    "other-format": Kind("note", "convert to PNG or JPEG; otherwise it is left out"),
    "left-out": Kind("note", "delete it: it is not an image, and not read"),
}


class Finding(NamedTuple):
    """A problem or oddity of one file or folder.

    Attributes:
        kind: a key of ``KINDS``.
        path: file or folder relative to the source; ``.`` is all of it.
        detail: further information, may be "".
    """

    kind: str
    path: str
    detail: str = ""

    @property
    def severity(self) -> Severity:
        """``error`` or ``note``, see :class:`Kind`."""
        return KINDS[self.kind].severity


@dataclass(frozen=True)
class Report:
    """Result of a scan.

    Attributes:
        table: the images, including those that cannot be read.
        findings: errors first, by kind in the order of ``KINDS``, then by path.
        ignored: kind of file that is not a picture -> how many there are, the most frequent first.
    """

    table: ImageTable
    findings: tuple[Finding, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """Return kind -> its findings, in order; kinds without findings are left out."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.kind, []).append(finding)
        return groups


def report(table: ImageTable, findings: list[Finding], ignored: Mapping[str, int]) -> Report:
    """Return a report with its findings in order."""
    rank = {kind: number for number, kind in enumerate(KINDS)}
    return Report(table, tuple(sorted(set(findings), key=lambda f: (rank[f.kind], f.path, f.detail))), ignored)
