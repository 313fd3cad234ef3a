"""JSON files: readable, and written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.runtime.files import atomic_path


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys, indented by two spaces.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(dict(content), indent=2, sort_keys=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


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
