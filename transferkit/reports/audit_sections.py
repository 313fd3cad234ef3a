"""Sections made of an audit: likely label errors, outliers and whatever else it found."""

from collections.abc import Mapping, Sequence
from typing import Any

from transferkit.reports.content import Card, Gallery, Section
from transferkit.reports.numbers import Number, decimal
from transferkit.reports.result_files import ResultFolder

AUDIT = "audit.parquet"
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


def from_folder(folder: ResultFolder, kinds: Sequence[str] = IN_RUN) -> list[Section | None]:
    """Return the sections of the issues in ``audit.parquet``."""
    columns = folder.columns(AUDIT, "issue", "path", "label", "suggested", "score", "detail")
    if not columns:
        return []
    return folder.part(AUDIT, lambda: [section_of(columns, kind) for kind in kinds], [])


def section_of(columns: Mapping[str, Sequence[Any]], kind: str) -> Section:
    """Return the section of one kind of issue, the surest first.

    Args:
        columns: of the audit.
        kind: of issue.
    """
    anchor, title, lead = TITLES[kind]
    rows = [row for row, issue in enumerate(columns["issue"]) if issue == kind]
    cards = [card(columns, row) for row in rows[:SHOWN]]
    if not rows:
        return Section(anchor, title, "None found.", [])
    return Section(anchor, title, f"{len(rows):,} found. {lead}", [Gallery(cards, "", max(0, len(rows) - SHOWN))])


def card(columns: Mapping[str, Sequence[Any]], row: int) -> Card:
    """Return one finding."""
    path, label, suggested = (columns[name][row] for name in ("path", "label", "suggested"))
    title = " → ".join(filter(None, (label, suggested))) or "no label"
    lines: list[tuple[str, str | Number]] = [("", title)]
    lines.append(("score", decimal(float(columns["score"][row]), f"{AUDIT} score")))
    words = f", {columns['detail'][row]}" if columns["detail"][row] else ""
    return Card(str(path), f"{path}: {label or 'no label'}{words}", lines)
