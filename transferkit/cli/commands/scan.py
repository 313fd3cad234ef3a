"""``scan``: find problems in a set of images."""

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.console import as_json, next_command, note, table, written
from transferkit.cli.dialect import translate
from transferkit.cli.parsing import call
from transferkit.errors import UserError, first_line
from transferkit.runtime.files import check_folder, check_place
from transferkit.runtime.page_files import check_page_place
from transferkit.runtime.text import for_terminal

if TYPE_CHECKING:
    from transferkit.data.scan import Finding, Report

OF_FIT = {name: f"--data.{name}" for name in ("on_error", "class_weights", "classes")}  # options that a remedy names
EXAMPLES = 3
CLASSES = 20  # rows of the table of classes
PAGE = "scan/report.html"
NONE = "none"
COLUMNS = ("path", "finding", "severity", "detail")  # of the report


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(scan, arguments)


def scan(
    images: str,
    out: str | None = None,
    report: str = PAGE,
    image_root: str | None = None,
    multilabel: bool = False,
    json: bool = False,
) -> int:
    """Find problems in a set of images, in one pass.

    An error would stop or spoil training: images that cannot be read or are truncated, the same bytes under two
    labels or in two splits, groups in two splits, empty classes. A note is handled or harmless, but worth knowing:
    animations, unusual modes, EXIF rotation, blank images, copies in one split, images in unsupported formats. Images
    are counted by class, other files by kind. The exit status is 2 if there is an error, otherwise 0.

    Args:
        images: class folders, a folder with train/val[/test], a flat folder, a CSV or Parquet manifest, or one image.
        out: a CSV file, one line per finding: path, finding, severity, detail.
        report: an HTML file with the same findings and the images that can be shown; ``none`` writes none. The default
            is left out, and said, where it would lie among the images or cannot be written.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        multilabel: a manifest's label is several, such as cat|dog; lists in Parquet are anyway.
        json: print everything as one JSON object.
    """
    from transferkit.data.scan import scan as scan_images

    if out is not None:
        check_report_place(Path(out))
    page = page_place(report, images)
    found = scan_images(images, image_root=image_root, multilabel=multilabel or None)
    if out is not None:
        write_csv(found, Path(out))
    if page is not None:
        write_report(found, page, images, image_root)
    if json:
        as_json(as_dict(found, images))
    else:
        print_report(found)
    files = [Path(file) for file in (out, page) if file is not None]
    if files:
        written(*files)
    if found.errors:
        note(f"findings that would stop or spoil training: {found.errors} of {len(found.findings)}")
    elif len(found.table.class_names) > 1 or found.table.kind == "number":
        more = ["--data.image_root", image_root] if image_root else []
        more += ["--data.multilabel", "true"] if found.table.kind == "labels" else []
        next_command("fit", "--data.root", images, *more)
    return 2 if found.errors else 0


def page_place(report: str, images: str) -> str | None:
    """Return the HTML file to write; None for none: nothing is written among the images unless a place is named.

    Raises:
        UserError: a place that was named holds something else than a page, or cannot be written.
    """
    if report == NONE:
        return None
    try:
        if report == PAGE and Path(report).absolute().is_relative_to(Path(images).expanduser().absolute()):
            raise UserError("it would lie among the images")
        check_page_place(report)
    except UserError as error:
        if report != PAGE:
            raise
        note(f"no report: {first_line(error)}; --report names a place for it")
        return None
    return report


def write_report(found: "Report", place: str, images: str, image_root: str | None) -> None:
    """Write the HTML file."""
    from transferkit.data.scan import KINDS
    from transferkit.reports.report import report_of_scan

    root = ["--image_root", image_root] if image_root else []
    remedies = {kind: translate(KINDS[kind].remedy, OF_FIT) for kind in KINDS}
    report_of_scan(found, place, ["transferkit", "scan", images, *root, "--report", place], remedies)


def print_report(report: "Report") -> None:
    """Print the number of images per class, other files by kind, and a table of the findings."""
    from transferkit.data.scan import KINDS

    splits = sorted({split for split in report.table.splits if split is not None})
    counts = "".join(f", {report.table.splits.count(split):,} {split}" for split in splits)
    title = f"{report.table.source}: {len(report.table):,} images, {len(report.table.class_names):,} classes{counts}"
    print_classes(report, title if report.findings else f"{title}; nothing found")
    if report.ignored:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.ignored.items())
        print(for_terminal(f"other files, not checked: {kinds}"))
    rows = [
        (kind, KINDS[kind].severity, len(findings), examples(findings), translate(KINDS[kind].remedy, OF_FIT))
        for kind, findings in report.by_kind().items()
    ]
    if rows:
        table(("finding", "severity", "count", "examples", "what to do"), rows)


def print_classes(report: "Report", title: str) -> None:
    """Print the title, and images per class, the largest first; of many classes the largest and the smallest."""
    counts = class_counts(report)
    if not counts:
        print(for_terminal(title))
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
    """Return class -> split -> number of images."""
    from transferkit.data.targets import TARGETS

    counts: dict[str, Counter[str | None]] = {}
    names = TARGETS[report.table.kind].names
    for label, split in zip(report.table.labels, report.table.splits, strict=True):
        for name in names([label]) if label is not None else ():
            counts.setdefault(name, Counter())[split] += 1
    return counts


def examples(findings: list["Finding"]) -> str:
    """Return the first few findings of one kind, one per line; the last line counts the others."""
    lines = [for_terminal(f"{f.path} ({f.detail})" if f.detail else f.path) for f in findings[:EXAMPLES]]
    more = [f"and {len(findings) - EXAMPLES:,} more"] if len(findings) > EXAMPLES else []
    return "; ".join([*lines, *more])


def as_dict(report: "Report", source: str) -> dict[str, object]:
    """Return the report as plain types."""
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
                "remedy": translate(KINDS[kind].remedy, OF_FIT),
                "found": [{"path": finding.path, "detail": finding.detail} for finding in findings],
            }
            for kind, findings in report.by_kind().items()
        ],
    }


def check_report_place(path: Path) -> None:
    """Raise if the file is anything but an earlier report.

    Raises:
        UserError: the file has other content, such as a manifest, or cannot be created.
    """

    def foreign(place: Path) -> str | None:
        if not place.is_file():
            return None
        with place.open("rb") as file:
            start = file.readline(200).strip()
        return None if start in (b"", ",".join(COLUMNS).encode()) else "another first line"

    if not path.exists():
        check_folder(path.parent)
    check_place(path, "the report of a scan", foreign)


def write_csv(report: "Report", path: Path) -> None:
    """Write one line per finding; control characters are escaped."""
    from transferkit.runtime.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((for_terminal(f.path), f.kind, f.severity, for_terminal(f.detail)) for f in report.findings)
