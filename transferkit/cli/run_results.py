"""The results of fit, validate, test and predict, as they are printed; Lightning is not needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from transferkit.cli.console import as_json, note
from transferkit.reports.predictions import ranked_columns
from transferkit.runtime.text import for_terminal

JUDGED = ("calibrated_probability", "set", "answer", "knn_distance", "mahalanobis_distance", "unlike_train")


def results(run: Path | None, begin: float, values: Mapping[str, float], json: bool, more: Mapping[str, Any]) -> None:
    """Print metrics, one per line; the run's path, and the files written into it.

    Args:
        run: the run directory; None for a fast_dev_run, which keeps nothing.
        begin: start of the command, in seconds since the Unix epoch: older files were there before.
        values: name -> value.
        json: print one JSON object instead.
        more: further entries of that object.
    """
    files = [path for path in run.rglob("*") if path.is_file() and path.stat().st_mtime >= begin] if run else []
    names = {str(path.relative_to(run)) for path in files} if run else set()
    written = sorted(names, key=lambda name: (name == "report.html", name))  # what to look at comes last
    if json:
        as_json({"run": str(run) if run else None, "metrics": dict(values), "written": written, **more})
    else:
        for name, value in sorted(values.items()):
            print(f"{name} {number(value)}")
        if run:
            print(f"run {run}")
    note(f"written into it: {', '.join(written) or 'nothing'}")


def number(value: float) -> str:
    """Format a metric with four decimals, a small one with four digits, an epoch as an integer."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.3e}"


def first_predictions(table: Path, most: int = 10) -> None:
    """Print the first predictions, one per line, and whether the classifier is not sure or the image is unlike train.

    The probability is the calibrated one if there is one, as what depends on it is.

    Args:
        table: ``predictions.parquet``.
        most: number of predictions.
    """
    with pq.ParquetFile(table) as file:
        names = set(file.schema_arrow.names)
        columns = [name for name in ("path", "prediction", "probability", *JUDGED) if name in names]
        rows = next(file.iter_batches(most, columns=columns)).to_pylist()
    for row in rows:
        remarks = ["not answered"] if row.get("answer", "") is None else []
        remarks += ["unlike train"] if row.get("unlike_train") else []
        remark = f" ({', '.join(remarks)})" if remarks else ""
        probability = row.get("calibrated_probability", row.get("probability"))
        sure = "" if probability is None else f" {probability:.3f}"
        found = row["prediction"] if isinstance(row["prediction"], str) else number(row["prediction"])
        print(for_terminal(f"{row['path']} {found}{sure}{remark}"))


def predictions(table: Path, top_k: int) -> list[dict[str, Any]]:
    """Return what ``--json`` prints for each image: path, label, the most probable classes, and how far to trust them.

    Of several labels, and of numbers, it is the whole row of the table.

    Args:
        table: ``predictions.parquet``.
        top_k: number of classes, if there are as many.
    """
    ranked = ranked_columns(top_k)
    names = set(pq.read_schema(table).names)
    if "probability" not in names:  # several labels, or a number
        whole: list[dict[str, Any]] = pq.read_table(table).to_pylist()
        return whole
    kept = [pair for pair in ranked if pair[0] in names]
    judged = [name for name in JUDGED if name in names]
    wanted = ["path", "label", *(name for pair in kept for name in pair), *judged]
    rows = pq.read_table(table, columns=wanted).to_pylist()
    return [
        {
            "path": row["path"],
            "label": row["label"],
            "top": [{"class": row[name], "probability": row[share]} for name, share in kept],
            **{name: row[name] for name in judged},
        }
        for row in rows
    ]
