"""The files of an audit: a table as Parquet and CSV, a summary, and the manifest that a review of it leads to."""

import csv
import logging
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from transferkit.data.containment import Containment
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable
from transferkit.errors import UserError, listed
from transferkit.probe.audit import Audit, Issue, audit_embeddings
from transferkit.runtime.csv_files import encoding_for, open_csv
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import write_json
from transferkit.runtime.versions import versions
from transferkit.similarity import drawn_rows

log = logging.getLogger(__name__)
PARQUET, CSV, SUMMARY, QUALITY = "audit.parquet", "audit.csv", "audit.json", "label_quality.parquet"
MOST_ROWS = 20_000
"""Of a tested run: an audit of its own looks at all."""
DECISIONS = ("", "keep", "relabel", "drop")


def save_audit(
    audit: Audit, folder: Path, images: Mapping[str, Any] | None = None, more: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write the issues as ``audit.parquet`` and ``audit.csv``, a summary, and the quality of each label.

    The CSV has an empty column ``decision`` for :func:`apply_review`.

    Args:
        audit: what was found.
        folder: to write into.
        images: where the images are, for the report.
        more: further entries of the summary.
    """
    files = [folder / name for name in (PARQUET, CSV, SUMMARY, QUALITY)]
    columns = columns_of(audit)
    with atomic_path(files[0]) as temporary:
        pq.write_table(columns, temporary)
    decisions = columns.append_column("decision", pa.array([""] * len(audit.issues), pa.string()))
    texts = (text for name in ("path", "label", "suggested", "detail") for text in columns[name].to_pylist())
    with atomic_path(files[1]) as temporary, temporary.open("wb") as file:
        file.write("".encode(encoding_for(texts)))
        pyarrow.csv.write_csv(decisions, file)
    write_json(files[2], {**summary_of(audit), "images": dict(images or {}), **(more or {}), "versions": versions()})
    quality = {"path": pa.array(audit.quality, pa.string()), "quality": pa.array(audit.quality.values(), pa.float64())}
    with atomic_path(files[3]) as temporary:
        pq.write_table(pa.table(quality), temporary)
    return files


def check_decisions_place(folder: Path, overwrite: bool = False) -> None:
    """Refuse to write an audit over one that somebody has reviewed.

    Args:
        folder: to write into.
        overwrite: whether decisions may be replaced.

    Raises:
        UserError: the ``audit.csv`` in the folder holds decisions, or is not as an audit has written it.
    """
    file = folder / CSV
    if overwrite or not file.exists() or file.stat().st_size == 0:
        return
    try:
        decided = sum(bool(decision) for _, decision, _ in read_review(file))
    except UserError as error:  # such as another encoding: decisions may be in it
        raise UserError(f"{file} is not as an audit writes it; move it, or add `overwrite=True`") from error
    if decided:
        raise UserError(f"{file} holds decisions ({decided:,}); apply it, move it, or add `overwrite=True`")


def summary_of(audit: Audit) -> dict[str, Any]:
    """Return how much was found, of how many images and labels."""
    return {
        "rows": audit.rows,
        "labeled": audit.labeled,
        "judged": len(audit.quality),
        "counts": audit.counts(),
        "remarks": audit.remarks,
    }


def audit_run(run: Path, fine_tuned: bool = False) -> None:
    """Audit the tested images of a run, see :func:`save_tested_audit`.

    Args:
        run: directory with the ``embeddings.parquet`` of a test.
        fine_tuned: whether its backbone has learned the classes.
    """
    save_tested_audit(Embeddings.load(run / "embeddings.parquet"), run, fine_tuned)


def save_tested_audit(table: Embeddings, folder: Path, fine_tuned: bool = False) -> list[Path]:
    """Write ``audit.parquet`` and ``audit.json`` for a report, if images have one class each; of 20,000 at most.

    Args:
        table: embeddings of the tested images.
        folder: of a run or a probe.
        fine_tuned: whether the extractor has learned the classes.

    Returns:
        The files.
    """
    if table.kind != "class" or not len(table):
        return []
    rows = drawn_rows(len(table), MOST_ROWS, 0).tolist()
    audit = audit_embeddings(table.select(rows) if len(rows) < len(table) else table, fine_tuned=fine_tuned)
    with atomic_path(folder / PARQUET) as temporary:
        pq.write_table(columns_of(audit), temporary)
    write_json(folder / SUMMARY, {**summary_of(audit), "of": len(table)})
    return [folder / PARQUET, folder / SUMMARY]


def columns_of(audit: Audit) -> pa.Table:
    """Return the issues as a table, the surest of each kind first."""
    columns: dict[str, Any] = {}
    for number, name in enumerate(Issue._fields):
        kind = pa.float64() if name == "score" else pa.string()
        columns[name] = pa.array([issue[number] for issue in audit.issues], kind)
    return pa.table(columns)


def apply_review(reviewed: Path, paths: list[str], labels: list[str | None]) -> tuple[list[str | None], list[bool]]:
    """Return the labels after a review, and which images stay.

    Args:
        reviewed: ``audit.csv`` with ``keep``, ``relabel`` or ``drop`` in its column ``decision``; a relabeled image
            gets the class in the column ``suggested``, which may be edited.
        paths: of all images.
        labels: of the same.

    Raises:
        UserError: not such a file, an unknown decision or path, a relabeling without a class, or two decisions on one
            image that contradict each other.
    """
    row_of = {path: row for row, path in enumerate(paths)}
    new, stays = list(labels), [True] * len(paths)
    decided: dict[str, tuple[str, str]] = {}
    said: set[str] = set()  # new classes, which are meant or mistyped
    classes = sorted({label for label in labels if label is not None})
    for number, (path, decision, suggested) in enumerate(read_review(reviewed), 2):  # as a spreadsheet counts
        where = f"{reviewed}, line {number}"
        if decision not in DECISIONS:
            raise UserError(f"{where}: unknown decision {decision!r}; use keep, relabel or drop, or leave it empty")
        if not decision:
            continue
        if path not in row_of:
            raise UserError(f"{where}: {path!r} is not among the images; give the images that were audited")
        if decision == "relabel" and not suggested:
            raise UserError(f"{where}: no class to relabel {path!r} as; write it into the column suggested")
        what = (decision, suggested if decision == "relabel" else "")
        if decided.setdefault(path, what) != what:
            raise UserError(f"{where}: {path!r} has two decisions, {decided[path][0]} and {decision}; leave one")
        if decision == "relabel":
            new[row_of[path]] = suggested
            if suggested not in classes and suggested not in said:
                said.add(suggested)
                log.warning("%s: %r is a new class; nearest: %s", where, suggested, nearest_of(suggested, classes))
        stays[row_of[path]] = decision != "drop"
    return new, stays


def nearest_of(name: str, classes: list[str]) -> str:
    """Return the class whose name is most similar."""
    return repr(max(classes, key=lambda other: SequenceMatcher(None, name.lower(), other.lower()).ratio(), default=""))


def read_review(reviewed: Path) -> list[tuple[str, str, str]]:
    """Return path, decision and suggested class of each row.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    try:
        with open_csv(reviewed) as (lines, delimiter):
            reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
            missing = {"path", "decision", "suggested"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{reviewed} has no column {listed(sorted(missing))}; give the audit.csv of an audit")
            cells = ([(row[name] or "").strip() for name in ("path", "decision", "suggested")] for row in reader)
            return [(path, decision.lower(), suggested) for path, decision, suggested in cells]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read {reviewed} as CSV ({' '.join(str(error).split())[:200]})") from error


def check_listed(table: ImageTable, stays: list[bool]) -> None:
    """Validate that a manifest of the images that stay can be read: a folder may have links that lead out of it.

    Raises:
        UserError: no image stays, or some lie outside of the folder.
    """
    kept = [path for path, stay in zip(table.paths, stays, strict=True) if stay]
    if not kept:
        raise UserError(f"no image of {table.source or table.root} is left; drop fewer, or repair the unreadable ones")
    outside: dict[int, str] = {}
    Containment(Path(table.root)).all(kept, outside)
    if outside:
        names = listed([kept[position] for position in outside])
        raise UserError(
            f"links lead out of {table.root}, which a manifest must not: {names}; replace them by copies, or drop them"
        )


def write_manifest(table: ImageTable, labels: list[str | None], stays: list[bool], out: Path) -> int:
    """Write a manifest with the columns path, label, split and group (if any); return the number of images."""
    kept = [row for row in range(len(table)) if stays[row]]
    columns = {"path": table.paths, "label": labels, "split": table.splits}
    columns |= {} if table.groups is None else {"group": table.groups}
    encoding = encoding_for(text for column in columns.values() for text in column)
    with atomic_path(out) as temporary, temporary.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([column[row] or "" for column in columns.values()] for row in kept)
    return len(kept)
