"""``cache``: list and clear cached features, networks in int8, and what else is kept between commands."""

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console
from transferkit.cli.parsing import call
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.embed.feature_cache import Entry

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    verb, *rest = arguments
    if not rest or rest[0].startswith("-"):
        rest = ["list", *rest]
    return call(cache, [verb, *rest])


def cache(action: Literal["list", "clear"], older_than: str | None = None, json: bool = False) -> int:
    """List the cached features of images and networks in int8, or remove them.

    What is removed is computed again when needed. When the cache exceeds its limit, TRANSFERKIT_CACHE_LIMIT (20GB
    by default), the least recently used entries are removed; TRANSFERKIT_CACHE moves the cache. Which images were
    decoded is listed and counted, too; datasets of torchvision are listed and cleared, but not limited.

    Args:
        action: list (the default) shows the entries, most recently used first; clear removes them.
        older_than: only entries not used for this long, such as 12h, 30d or 8w.
        json: print one JSON object.
    """
    from transferkit.embed import feature_cache
    from transferkit.runtime.files import cache_dir

    limit, least = feature_cache.cache_limit(), seconds_of(older_than) if older_than else 0.0
    now = time.time()
    every = [*feature_cache.entries(), *feature_cache.decoded(), *feature_cache.datasets()]
    found = sorted(every, key=lambda entry: -entry.used)
    found = [entry for entry in found if now - entry.used >= least]
    if action == "clear":
        for entry in found:
            feature_cache.remove(entry)
    rows = [] if action == "clear" else [describe(entry) for entry in found]
    total = sum(entry.bytes for entry in found)
    if json:
        entries = {"removed": len(found)} if action == "clear" else {"entries": rows}
        console.as_json({"folder": str(cache_dir()), "limit_bytes": limit, "bytes": total, **entries})
    elif action == "clear":
        console.table(("removed", "size"), [(len(found), console.format_size(total))])
    else:
        columns = ("extractor", "pooling", "images", "of", "size", "last use")
        table = [
            [row[name] for name in columns[:4]] + [console.format_size(row["bytes"]), row["last_use"]] for row in rows
        ]
        sizes = f"{console.format_size(total)} of {console.format_size(limit)}"
        console.table(columns, table, f"{cache_dir()}: {len(found):,} entries, {sizes}")
    return 0


def describe(entry: "Entry") -> dict[str, Any]:
    """Describe an entry by its metadata; those of other kinds, damaged and interrupted ones are marked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from transferkit.data.embeddings import metadata_of

    words = {
        ".parts": "(unfinished)",
        ".onnx": "(network in int8)",
        ".sqlite": "(decoded images)",
        "": f"(dataset {entry.file.name})",
    }
    known: dict[str, Any] = {"extractor": words.get(entry.file.suffix, "(damaged)")}
    try:
        if entry.file.suffix == ".parquet":
            whole = pq.read_metadata(entry.file)
            metadata = metadata_of(whole.schema.to_arrow_schema(), entry.file)
            known = {"extractor": metadata.get("extractor"), "pooling": metadata.get("pooling")}
            known |= {"images": whole.num_rows, "of": metadata.get("images")}
    except (OSError, pa.ArrowException, UserError, ValueError):
        pass  # the row is marked as damaged
    used = datetime.fromtimestamp(entry.used).isoformat(sep=" ", timespec="minutes")
    blank: dict[str, Any] = {"extractor": None, "pooling": None, "images": None, "of": None}
    return {**blank, **known, "bytes": entry.bytes, "last_use": used, "file": str(entry.file)}


def seconds_of(text: str) -> float:
    """Return the seconds of a time span such as ``12h`` or ``30d``.

    Raises:
        UserError: the text is not a time span.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if not found:
        raise UserError(f"--older_than is {text[:80]!r}; give a number with s, m, h, d or w, such as 12h or 30d")
    return float(found[1]) * SECONDS[found[2]]
