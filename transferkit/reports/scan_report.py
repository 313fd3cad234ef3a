"""The report of a scan: what is wrong with a set of images, with the images that can be shown."""

import shlex
from collections.abc import Mapping

from transferkit.data.scan import KINDS, Finding
from transferkit.data.scan import Report as Scan
from transferkit.reports import data_sections
from transferkit.reports.content import Block, Card, Cell, Gallery, Headline, Report, Section, Table
from transferkit.reports.numbers import Number, count, counted

SHOWN = 12  # images of one kind of finding
LISTED = 200  # findings of one kind
SCAN = "scan"
LEAD = "Errors would stop or spoil training; notes are worth knowing."


def scan_report(scan: Scan, command: list[str], remedies: Mapping[str, str] | None = None) -> Report:
    """Return the report of a scan.

    Args:
        scan: what was found.
        command: words of the command line to repeat it.
        remedies: kind of finding -> what to do; by default in the words of Python.
    """
    remedies = remedies or {kind: KINDS[kind].remedy.replace("`", "") for kind in KINDS}
    kinds = scan.by_kind()
    table: list[list[Cell]] = [
        [kind, KINDS[kind].severity, count(len(found), f"{SCAN} {kind}"), remedies[kind]]
        for kind, found in kinds.items()
    ]
    sections = []
    if table:
        blocks: list[Block] = [Table(("finding", "severity", "count", "what to do"), table)]
        sections.append(
            Section(
                "findings", "What was found", "Errors would stop or spoil training; notes are worth knowing.", blocks
            )
        )
    sections += [kind_section(kind, found, scan, remedies[kind]) for kind, found in kinds.items()]
    splits: data_sections.Splits = {
        "label": list(scan.table.labels),
        "split": [split or "no split" for split in scan.table.splits],
    }
    counted = data_sections.data_counts(splits, "scan images", scan.table.kind)
    sections += [counted] if counted and scan.table.class_names else []
    sections.append(data_sections.provenance([shlex.join(command)], [], {}, {}))
    return Report(scan.table.source, "Scan", headline(scan), sections)


def headline(scan: Scan) -> Headline:
    """Return how many errors there are."""
    notes = len(scan.findings) - scan.errors
    stats: list[tuple[str, Number]] = [("images", count(len(scan.table), f"{SCAN} images"))]
    stats += [
        ("classes", count(len(scan.table.class_names), f"{SCAN} classes")),
        ("notes", count(notes, f"{SCAN} notes")),
    ]
    stats += [
        (f"{kind}, not read", count(number, f"{SCAN} ignored")) for kind, number in list(scan.ignored.items())[:3]
    ]
    sentence = (
        "Nothing would stop or spoil training." if not scan.errors else "Each would stop or spoil training; see below."
    )
    return Headline(count(scan.errors, f"{SCAN} errors"), "errors", sentence, None, stats)


def kind_section(kind: str, found: list[Finding], scan: Scan, remedy: str) -> Section:
    """Return the findings of one kind: images where they can be shown, and all in a table."""
    known = set(scan.table.paths)
    readable = KINDS[kind].severity == "note" or kind in ("label-conflict", "leak")
    shown = [finding for finding in found if readable and finding.path in known][:SHOWN]
    cards = [Card(f.path, f"{f.path}: {kind} {f.detail}", [("", f.detail or kind)]) for f in shown]
    blocks: list[Block] = [Gallery(cards)] if cards else []
    rows: list[list[Cell]] = [[finding.path, finding.detail or "–"] for finding in found[:LISTED]]
    more = f", {LISTED} of them listed" if len(found) > LISTED else ""
    blocks.append(Table(("path", "detail"), rows, f"{counted(len(found), 'finding')}{more}" if cards else ""))
    return Section(f"kind-{kind}", kind, remedy, blocks)
