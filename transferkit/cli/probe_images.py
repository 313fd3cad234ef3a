"""What a probe's directory says of the images themselves: leaks, likely label errors and outliers, and the report."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transferkit.data.embeddings import Embeddings
    from transferkit.probe.protocol import ProbeResult


def write_about_images(result: "ProbeResult", embeddings: "Embeddings", out: Path) -> list[Path]:
    """Compare the images of all splits, audit those of test, and write the report; return the files.

    Args:
        result: of the probe, whose own files are written.
        embeddings: that were probed.
        out: the probe's directory.
    """
    from transferkit.probe.audit_files import save_tested_audit
    from transferkit.reports.report import report_of
    from transferkit.search.leaks import save_leaks

    split_of = dict(zip(result.splits.paths, result.splits.splits, strict=True))
    tested = embeddings.select([row for row, path in enumerate(embeddings.paths) if split_of.get(path) == "test"])
    files = [save_leaks(embeddings, split_of, out), *save_tested_audit(tested, out)]
    return [*files, report_of(out, embeddings=tested)]
