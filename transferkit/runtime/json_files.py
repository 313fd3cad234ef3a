"""JSON files: readable, and written atomically."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.runtime.files import atomic_path


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as :func:`json_text` makes it.

    Raises:
        UserError: the file cannot be written.
    """
    text = json_text(content)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_text(content: Mapping[str, Any]) -> str:
    """Return a JSON object with sorted keys, indented by two spaces; null for NaN and infinity, which JSON lacks."""
    try:
        return json.dumps(dict(content), indent=2, sort_keys=True, allow_nan=False)
    except ValueError:
        return json.dumps(finite(content), indent=2, sort_keys=True)


def finite(value: Any) -> Any:
    """Return a value with None in place of each number in it that is not finite.

    >>> finite({"r2": math.nan, "rows": [1, math.inf]})
    {'r2': None, 'rows': [1, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, list | tuple) else value


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content
