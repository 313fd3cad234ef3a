"""Sections made of an audit: likely label errors, outliers and whatever else it found."""

from collections.abc import Mapping, Sequence
from typing import Any

from transferkit.reports.content import Card, Gallery, Section
from transferkit.reports.numbers import Number, decimal
from transferkit.reports.result_files import ResultFolder

AUDIT, SUMMARY = "audit.parquet", "audit.json"
SHOWN = 24
TITLES = {  # issue -> id, title and lead of its section, in order
    "label": (
        "labels",
        "Likely label errors",
        "A classifier that never saw these images says otherwise.",
    ),
    "outlier": (
        "outliers",
        "Outliers",
        "Far from all other images: perhaps they do not belong.",
    ),
    "off-class": ("off-class", "Unlike their class", "Near other images, yet far from those with the same label."),
    "ambiguous": (
        "ambiguous",
        "Ambiguous images",
        "Two classes are about equally likely: perhaps both are there.",
    ),
    "burst": ("bursts", "Bursts", "Many nearly equal images, as of a camera's burst: they count as one."),
    "blurred": ("blurred", "Blurred", "Hardly any sharp edge."),
    "dark": ("dark", "Dark", "Nearly black."),
    "bright": ("bright", "Bright", "Nearly white."),
    "low-information": ("low-information", "Low information", "Nearly one color."),
    "odd-aspect": (
        "odd-aspect",
        "Odd aspect ratio",
        "Much wider or taller than others; cropping loses most of it.",
    ),
}
IN_RUN = ("label", "outlier")
NOT_THERE = f"likely label errors and outliers: {AUDIT} is not there; test or probe again"


def tested_images(folder: ResultFolder) -> list[Section | None]:
    """Return the sections of the tested images of a run or a probe; note if they were not audited."""
    if not (folder.path / AUDIT).exists():
        folder.missing.append(NOT_THERE)
    return from_folder(folder)


def from_folder(folder: ResultFolder, kinds: Sequence[str] = IN_RUN) -> list[Section | None]:
    """Return the sections of the issues in ``audit.parquet``."""
    columns = folder.columns(AUDIT, "issue", "path", "label", "suggested", "score", "detail")
    if not columns:
        return []
    summary = folder.json(SUMMARY)
    unknown: dict[str, str] = {}
    limits = folder.part(SUMMARY, lambda: {kind: limits_of(summary, kind) for kind in kinds}, unknown)
    return folder.part(AUDIT, lambda: [section_of(columns, kind, limits.get(kind, "")) for kind in kinds], [])


def limits_of(summary: Mapping[str, Any], kind: str) -> str:
    """Return what was not looked at for a kind of issue; empty if all was.

    Args:
        summary: content of ``audit.json``; ``of`` is there if images were drawn.
        kind: of issue.
    """
    rows, of = summary.get("rows", 0), summary.get("of", 0)
    drawn = f" Looked for among {rows:,} of {of:,} images, drawn by chance." if rows < of else ""
    judged, labeled = summary.get("judged", 0), summary.get("labeled", 0)
    if kind not in ("label", "ambiguous") or judged >= labeled:
        return drawn
    if not judged:
        return f"{drawn} No label was judged: that takes two classes of two images each."
    return f"{drawn} {labeled - judged:,} of {labeled:,} labels were not judged: their class has no other image."


def section_of(columns: Mapping[str, Sequence[Any]], kind: str, limits: str = "") -> Section:
    """Return the section of one kind of issue, the surest first.

    Args:
        columns: of the audit.
        kind: of issue.
        limits: what was not looked at, in words.
    """
    anchor, title, lead = TITLES[kind]
    rows = [row for row, issue in enumerate(columns["issue"]) if issue == kind]
    cards = [card(columns, row) for row in rows[:SHOWN]]
    if not rows:
        return Section(anchor, title, f"None found.{limits}", [])
    gallery = Gallery(cards, "", max(0, len(rows) - SHOWN))
    return Section(anchor, title, f"{len(rows):,} found. {lead}{limits}", [gallery])


def card(columns: Mapping[str, Sequence[Any]], row: int) -> Card:
    """Return one finding."""
    path, label, suggested = (columns[name][row] for name in ("path", "label", "suggested"))
    title = " → ".join(filter(None, (label, suggested))) or "no label"
    lines: list[tuple[str, str | Number]] = [("", title)]
    lines.append(("score", decimal(float(columns["score"][row]), f"{AUDIT} score")))
    words = f", {columns['detail'][row]}" if columns["detail"][row] else ""
    return Card(str(path), f"{path}: {label or 'no label'}{words}", lines)
