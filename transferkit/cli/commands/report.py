"""``report``: one HTML file of a run, probe, benchmark, evaluation or audit, or of two side by side."""

from pathlib import Path

from transferkit.cli import console
from transferkit.cli.parsing import call
from transferkit.errors import UserError, first_line

NOT_OURS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What fields of other types or names raise, in files that somebody else wrote or changed."""


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    return call(report, arguments)


def report(
    path: list[str],
    out: str | None = None,
    images: str | None = None,
    image_root: str | None = None,
    json: bool = False,
) -> int:
    """Write report.html: what a run, probe, benchmark, evaluation or audit found, with the images behind the numbers.

    One file that needs no network and opens from disk. Of two runs or probes it shows what changed, with a paired
    bootstrap and McNemar's test on the images that both judged.

    Args:
        path: one directory, or two to compare: a run, or what probe, benchmark, evaluate or audit wrote.
        out: the HTML file; by default report.html in the directory, of two comparison.html in the second.
        images: where the images are, where the results do not say or they have moved: folder, manifest or dataset.
        image_root: the folder that a manifest's paths are relative to or lie in, where it is not its own.
        json: print one JSON object.
    """
    from transferkit.reports.report import report_of, report_of_two

    if len(path) > 2:
        raise UserError(f"{len(path)} directories; give one, or two to compare")
    try:
        if len(path) == 1:
            file = report_of(path[0], out, images=images, image_root=image_root)
        else:
            place = out or Path(path[1]) / "comparison.html"
            file = report_of_two(path[0], path[1], place, images=images, image_root=image_root)
    except NOT_OURS as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the files in {' and '.join(path)} are not as transferkit writes them ({reason})") from error
    if json:
        console.as_json({"report": str(file), "bytes": file.stat().st_size})
    console.written(file)
    return 0
