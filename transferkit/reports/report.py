"""A report of a directory of results, of a scan, or of two directories side by side, written as one HTML file."""

from collections.abc import Mapping
from pathlib import Path

from transferkit.data.embeddings import Embeddings
from transferkit.data.scan import Report as Scan
from transferkit.reports.comparison import comparison_report
from transferkit.reports.content import Report
from transferkit.reports.other_reports import audit_report, benchmark_report, evaluation_report
from transferkit.reports.probe_report import probe_report
from transferkit.reports.rank_report import rank_report
from transferkit.reports.rendering import write_report
from transferkit.reports.result_files import ImageSource, ResultFolder
from transferkit.reports.run_report import run_report
from transferkit.reports.scan_report import scan_report
from transferkit.reports.thumbnails import Thumbnails, make_thumbnails

FILE = "report.html"


def report_of(
    path: str | Path,
    out: str | Path | None = None,
    *,
    images: str | None = None,
    image_root: str | None = None,
    embeddings: Embeddings | None = None,
) -> Path:
    """Write the report of a run, probe, benchmark, evaluation, audit or ranking.

    It is made of what there is in the directory, and says what is missing.

    Args:
        path: the directory.
        out: the HTML file; by default ``report.html`` in the directory.
        images: where the images are, where the results do not say or they have moved: folder, manifest or dataset.
        image_root: the folder that a manifest's paths are relative to.
        embeddings: of an evaluation, the table that was evaluated; of a probe, that of its test images.

    Returns:
        The file.

    Raises:
        UserError: the directory holds no results, or the file cannot be written.
    """
    folder = ResultFolder(Path(path))
    kind = folder.kind
    source = ImageSource(None)
    if kind == "run":
        report, source = run_report(folder, images, image_root)
    elif kind == "probe":
        report, source = probe_report(folder, embeddings, images, image_root)
    elif kind == "benchmark":
        report = benchmark_report(folder)
    elif kind == "ranking":
        report = rank_report(folder)
    elif kind == "audit":
        report, source = audit_report(folder, images, image_root)
    else:
        report, source = evaluation_report(folder, embeddings, images, image_root)
    return finish(report, source, Path(out) if out else folder.path / FILE)


def report_of_two(
    first: str | Path, second: str | Path, out: str | Path, *, images: str | None = None, image_root: str | None = None
) -> Path:
    """Write what differs between two runs or probes, and whether it is more than chance.

    Args:
        first: a directory of predictions.
        second: another, of the same test images.
        out: the HTML file.
        images: where the images are, where the results do not say or they have moved.
        image_root: the folder that a manifest's paths are relative to.

    Returns:
        The file.

    Raises:
        UserError: a directory without predictions, no image in common, or the file cannot be written.
    """
    report, source = comparison_report(ResultFolder(Path(first)), ResultFolder(Path(second)), images, image_root)
    return finish(report, source, Path(out))


def report_of_scan(scan: Scan, out: str | Path, command: list[str], remedies: Mapping[str, str] | None = None) -> Path:
    """Write the report of a scan.

    Args:
        scan: what was found.
        out: the HTML file.
        command: words of the command line to repeat it.
        remedies: kind of finding -> what to do, in the words of the command line; by default in those of Python.

    Returns:
        The file.

    Raises:
        UserError: the file cannot be written.
    """
    return finish(scan_report(scan, command, remedies), ImageSource(scan.table), Path(out))


def finish(report: Report, source: ImageSource, out: Path) -> Path:
    """Make the thumbnails and write the page."""
    paths = report.paths()
    made = make_thumbnails(paths, source.reader()) if source.table is not None or source.pictures else Thumbnails()
    if made.unread:
        report.missing.append(f"{len(made.unread):,} of {len(paths):,} thumbnails: {next(iter(made.unread.values()))}")
    if made.left_out:
        report.missing.append(f"{made.left_out:,} of {len(paths):,} thumbnails, which would make the page too large")
    write_report(report, made, out)
    return out
