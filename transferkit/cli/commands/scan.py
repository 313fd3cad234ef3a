"""``scan``: what is wrong with a set of images."""

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.console import as_json, harmless, next_command, note, table, written
from transferkit.cli.parsing import call
from transferkit.errors import UserError
from transferkit.runtime.files import check_folder

if TYPE_CHECKING:
    from transferkit.data.scan import Finding, Report

EXAMPLES = 3
CLASSES = 20  # rows of the table of classes
COLUMNS = ("path", "finding", "severity", "detail")  # of the report


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    return call(scan, arguments)


def scan(
    images: str,
    out: str | None = None,
    report: str | None = None,
    image_root: str | None = None,
    json: bool = False,
) -> int:
    """Find out what is wrong with a set of images, in one pass.

    An error would stop training or spoil it: images that cannot be read or are cut short, the same bytes under
    two labels or in two splits, empty classes. A note is handled or harmless, but worth knowing: animations,
    odd modes, EXIF rotation, blank images, copies in one split, pictures of formats that are not read. Images are
    counted by class, other files by kind. The exit status is 2 if there is an error, else 0.

    Args:
        images: class folders, a folder with train/val[/test], a flat folder, a CSV or Parquet manifest, or one image.
        out: a CSV file, one line a finding: path, finding, severity, detail.
        report: an HTML file with the same, and the images that can be shown.
        image_root: the folder that a manifest's paths are relative to or lie in, where it is not its own.
        json: print everything as one JSON object.
    """
    from transferkit.data.scan import scan as scan_images

    if out is not None:
        check_place(Path(out))
    if report is not None:
        check_folder(Path(report).parent)
    found = scan_images(images, image_root=image_root)
    if out is not None:
        write_csv(found, Path(out))
    if report is not None:
        write_report(found, report, images, image_root)
    if json:
        as_json(as_dict(found, images))
    else:
        print_report(found)
    files = [Path(file) for file in (out, report) if file is not None]
    if files:
        written(*files)
    if found.errors:
        note(f"findings that would stop or spoil training: {found.errors} of {len(found.findings)}")
    elif len(found.table.class_names) > 1:
        next_command("fit", "--data.root", images, *(["--data.image_root", image_root] if image_root else []))
    return 2 if found.errors else 0


def write_report(found: "Report", place: str, images: str, image_root: str | None) -> None:
    """Write the HTML file."""
    from transferkit.reports.report import report_of_scan

    root = ["--image_root", image_root] if image_root else []
    report_of_scan(found, place, ["transferkit", "scan", images, *root, "--report", place])


def print_report(report: "Report") -> None:
    """How many images of what in which class, other files by kind, and a table of the findings."""
    from transferkit.data.scan import KINDS

    splits = sorted({split for split in report.table.splits if split is not None})
    counts = "".join(f", {report.table.splits.count(split):,} {split}" for split in splits)
    title = f"{report.table.source}: {len(report.table):,} images, {len(report.table.class_names):,} classes{counts}"
    print_classes(report, title if report.findings else f"{title}; nothing found")
    if report.ignored:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.ignored.items())
        print(harmless(f"other files, not looked at: {kinds}"))
    rows = [
        (kind, KINDS[kind].severity, len(findings), examples(findings), KINDS[kind].remedy)
        for kind, findings in report.by_kind().items()
    ]
    if rows:
        table(("finding", "severity", "count", "examples", "what to do"), rows)


def print_classes(report: "Report", title: str) -> None:
    """The title, and images per class, the largest first; of many classes the largest and the smallest."""
    counts = class_counts(report)
    if not counts:
        print(harmless(title))
        return
    splits = sorted({split for split in report.table.splits if split is not None})
    ordered = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    rows: list[tuple[object, ...]] = [
        (name, count.total(), *(count[split] for split in splits)) for name, count in ordered
    ]
    if len(rows) > CLASSES:
        between = (f"({len(rows) - CLASSES:,} more; --json has them)", *[None] * (len(splits) + 1))
        rows = [*rows[: CLASSES // 2], between, *rows[-CLASSES // 2 :]]
    table(("class", "images", *splits), rows, title=title)


def class_counts(report: "Report") -> dict[str, Counter[str | None]]:
    """Class -> split -> images."""
    counts: dict[str, Counter[str | None]] = {}
    for label, split in zip(report.table.labels, report.table.splits, strict=True):
        if label is not None:
            counts.setdefault(label, Counter())[split] += 1
    return counts


def examples(findings: list["Finding"]) -> str:
    """The first few findings of one kind, one a line; the last line counts the others."""
    lines = [harmless(f"{f.path} ({f.detail})" if f.detail else f.path) for f in findings[:EXAMPLES]]
    more = [f"and {len(findings) - EXAMPLES:,} more"] if len(findings) > EXAMPLES else []
    return "; ".join([*lines, *more])


def as_dict(report: "Report", source: str) -> dict[str, object]:
    """The report as plain types."""
    from transferkit.data.scan import KINDS

    images = report.table
    splits = sorted({split for split in images.splits if split is not None})
    return {
        "source": source,
        "images": len(images),
        "classes": {name: count.total() for name, count in class_counts(report).items()},
        "splits": {split: images.splits.count(split) for split in splits},
        "ignored": dict(report.ignored),
        "errors": report.errors,
        "notes": len(report.findings) - report.errors,
        "findings": [
            {
                "finding": kind,
                "severity": KINDS[kind].severity,
                "count": len(findings),
                "remedy": KINDS[kind].remedy,
                "found": [{"path": finding.path, "detail": finding.detail} for finding in findings],
            }
            for kind, findings in report.by_kind().items()
        ],
    }


def check_place(path: Path) -> None:
    """Refuse to write over anything but an earlier report.

    Raises:
        UserError: the file holds something else, such as the manifest; it cannot be made.
    """
    if not path.exists():
        check_folder(path.parent)
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.readline(200).strip()
    if start not in (b"", ",".join(COLUMNS).encode()):
        raise UserError(f"--out {path} holds something else than the report of a scan; give another name")


def write_csv(report: "Report", path: Path) -> None:
    """One line a finding; what could steer a terminal, or break the line, is escaped."""
    from transferkit.runtime.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((harmless(f.path), f.kind, f.severity, harmless(f.detail)) for f in report.findings)
