"""The files of a ranking: all of it as JSON, and its rows as CSV."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import write_json
from transferkit.runtime.versions import versions

RANKING, ROWS = "rank.json", "rank.csv"


def save_ranking(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``rank.json`` and ``rank.csv`` into a folder, and return both.

    Args:
        content: of :func:`~transferkit.probe.rank.rank_candidates`, and where the images are.
        folder: to write into.
    """
    files = [folder / RANKING, folder / ROWS]
    write_json(files[0], {**content, "versions": versions()})
    with atomic_path(files[1]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = [flat(row) for row in content["rows"]]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return files


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with a column for each number in it."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{key}": inner for key, inner in flat(value).items()}
        elif isinstance(value, list | tuple):
            found |= {f"{name}_{end}": inner for end, inner in zip(("low", "high"), value, strict=True)}
        else:
            found[name] = value
    return found
