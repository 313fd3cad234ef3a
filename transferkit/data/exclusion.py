"""Images to leave out of a fit, named in a file: a list, or an audit's table with decisions."""

import csv
import logging
from pathlib import Path

import pyarrow as pa

from transferkit.data.image_table import ImageTable
from transferkit.errors import UserError, listed
from transferkit.runtime.csv_files import open_csv
from transferkit.runtime.parquet import read_table

log = logging.getLogger(__name__)


def leave_out(table: ImageTable, file: str | None) -> ImageTable:
    """Return the table without the images that a file names; paths that it does not have are counted in a warning.

    Args:
        table: the images.
        file: CSV or Parquet with a column ``path``; with a column ``decision`` too, only rows that say ``drop`` count.
            None leaves the table as it is.

    Raises:
        UserError: the file cannot be read or has no such column; no image is left.
    """
    if file is None:
        return table
    named = read_exclusion(Path(file).expanduser())
    kept = [row for row, path in enumerate(table.paths) if path not in named]
    unknown = sorted(named - set(table.paths))
    if unknown:
        log.warning("%s names images that are not in %s: %s", file, table.source or table.root, listed(unknown))
    if not kept:
        raise UserError(f"`exclude={file!r}` names every image of {table.source or table.root}; leave some in")
    log.info("%s leaves out %d of %d images", file, len(table) - len(kept), len(table))
    return table.select(kept)


def read_exclusion(file: Path) -> set[str]:
    """Return the paths that a file names.

    Raises:
        UserError: it cannot be read or has no column ``path``.
    """
    try:
        if file.suffix.lower() == ".parquet":
            found = read_table(file, ["path", "decision"]).to_pydict()
        else:
            with open_csv(file) as (lines, delimiter):
                rows = list(csv.DictReader(lines, strict=True, delimiter=delimiter))
            found = {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ["path"])}
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"cannot read `exclude={str(file)!r}` ({' '.join(str(error).split())[:200]})") from error
    if "path" not in found:
        raise UserError(f"`exclude={str(file)!r}` has no column 'path'; name the images in one")
    decisions = found.get("decision") or ["drop"] * len(found["path"])
    pairs = zip(found["path"], decisions, strict=True)
    return {path for path, decision in pairs if path and (decision or "").strip().lower() == "drop"}
