"""Near-duplicates in different splits of a run or a probe, by its embeddings, as a file for its report."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transferkit.data import seen
from transferkit.data.embeddings import Embeddings
from transferkit.runtime.json_files import write_json
from transferkit.search.duplicates import find_duplicates
from transferkit.similarity import drawn_rows, usual_threshold

FILE = "leaks.json"
MOST_ROWS = 20_000
"""Images at most that are compared: more are drawn by chance."""
LISTED = 1_000
"""Pairs at most that the file names; all are counted."""


def save_leaks(
    table: Embeddings, splits: Mapping[str, str | None], folder: Path, left_out: int = 0, fine_tuned: bool = False
) -> Path:
    """Write ``leaks.json``: pairs of near-duplicates in two splits, thresholds and pairs as of `find_duplicates`.

    Args:
        table: the embeddings.
        splits: path -> split; others have none.
        folder: to write into.
        left_out: number of further images of these splits, among which those of the table were drawn.
        fine_tuned: whether the extractor has learned the classes, see :func:`~transferkit.similarity.usual_threshold`;
            what the table's metadata say of it counts, too.
    """
    given = replace(table, splits=[splits.get(path) for path in table.paths])
    known = [row for row, split in enumerate(given.splits) if split]
    rows = [known[place] for place in drawn_rows(len(known), MOST_ROWS, 0).tolist()]
    part = given.select(rows)
    found = (
        find_duplicates(part, usual_threshold(part.embedding, fine_tuned or seen.fine_tuned(table.metadata)))
        if rows
        else None
    )
    pairs = [
        {
            "first": part.paths[pair.first],
            "second": part.paths[pair.second],
            "splits": [part.splits[pair.first], part.splits[pair.second]],
            "labels": [part.labels[pair.first], part.labels[pair.second]],
            "cosine": pair.cosine,
        }
        for pair in (found.leaks[:LISTED] if found else ())
    ]
    content = {
        "count": found.leak_count if found else 0,
        "threshold": found.threshold if found else None,
        "images": len(rows),
        "of": len(known) + left_out,
        "pairs": pairs,
    }
    write_json(folder / FILE, content)
    return folder / FILE
