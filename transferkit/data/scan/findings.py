"""The words of a scan: what can be found, how bad it is, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from transferkit.data.image_table import ImageTable

Severity = Literal["error", "note"]


class Kind(NamedTuple):
    """An ``error`` would stop training or spoil what it learns or reports; a ``note`` is handled, but worth knowing."""

    severity: Severity
    remedy: str


_BROKEN = "repair or delete, or train with --data.on_error skip"

KINDS = {
    "unreadable": Kind("error", _BROKEN),
    "truncated": Kind("error", f"copy it again; else {_BROKEN}"),
    "zero-byte": Kind("error", f"copy it again; else {_BROKEN}"),
    "too-large": Kind("error", "scale it down or delete it: it would take too much memory or time"),
    "unsupported-pixels": Kind("error", "convert to 8 or 16 bits per channel, in PNG or plain TIFF"),
    "unsupported-format": Kind("error", "convert to PNG or JPEG"),
    "needs-package": Kind("error", "install the package that is named, or convert to JPEG"),
    "permission-denied": Kind("error", "change the rights of the file or folder"),
    "unreadable-folder": Kind("error", "mend or move the folder"),
    "broken-link": Kind("error", "mend or delete the link: it leads nowhere or round in a circle"),
    "missing": Kind("error", "put the file back or delete its row"),
    "name-not-utf8": Kind("error", "rename the file or folder"),
    "faulty-row": Kind("error", "mend or delete the row of the manifest"),
    "label-conflict": Kind("error", "keep the copy with the right label: the same bytes have two"),
    "leak": Kind("error", "keep one copy: the same bytes are, or may be drawn, on both sides of a split"),
    "class-case": Kind("error", "give the class one spelling: these count as two classes"),
    "empty-folder": Kind("error", "fill it or delete it: it stands for a class or a split"),
    "untrainable": Kind("error", "see the detail"),
    "duplicate": Kind("note", "keep one copy: the same bytes count twice in one split"),
    "no-labels": Kind("note", "enough to embed or predict; to train, use one folder a class"),
    "imbalance": Kind("note", "add images, or train with --data.class_weights balanced"),
    "animated": Kind("note", "none needed: the first picture is taken"),
    "rotated": Kind("note", "none needed: turned upright as its EXIF says"),
    "odd-mode": Kind("note", "none needed: converted to RGB, transparency to white"),
    "blank": Kind("note", "look whether something is missing: all pixels have one color"),
    "tiny": Kind("note", "look whether it is a thumbnail or an icon"),
    "wrong-extension": Kind("note", "rename it: other tools may trust the extension"),
    "no-extension": Kind("note", "rename it, or it stays left out"),
    "name-case": Kind("note", "rename one: where case does not count, one overwrites the other"),
    "name-unicode": Kind("note", "rename one: both look the same; classes so named are read as one"),
    "other-format": Kind("note", "convert to PNG or JPEG, or it stays left out"),
    "left-out": Kind("note", "delete it: no image, and not read"),
}


class Finding(NamedTuple):
    """One thing found.

    Attributes:
        kind: a key of ``KINDS``.
        path: file or folder relative to the source; ``.`` is the whole of it.
        detail: what exactly, if there is more to say.
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
    """What a scan found.

    Attributes:
        table: the images, those that cannot be read among them.
        findings: errors first, by kind in the order of ``KINDS``, then by path.
        ignored: kind of file that is no picture -> how many of them lie there, the most frequent first.
    """

    table: ImageTable
    findings: tuple[Finding, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """Kind -> its findings, in order, without the kinds that were not found."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.kind, []).append(finding)
        return groups


def report(table: ImageTable, findings: list[Finding], ignored: Mapping[str, int]) -> Report:
    """A report with its findings in order."""
    rank = {kind: number for number, kind in enumerate(KINDS)}
    return Report(table, tuple(sorted(set(findings), key=lambda f: (rank[f.kind], f.path, f.detail))), ignored)
