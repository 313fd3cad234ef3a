"""Output: results on stdout, everything else on stderr; control characters in names from data are escaped."""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.runtime.json_files import json_text
from transferkit.runtime.text import for_terminal

NUMBER = re.compile(r"–|[-+−]?[\d.,]+(e[-+]?\d+)?( ± [\d.,]+)?")


def note(text: str) -> None:
    """Print a line on stderr."""
    print(for_terminal(text), file=sys.stderr)


def note_first(label: str, items: Sequence[str], remark: str = "", most: int = 5) -> None:
    """Print the first items on stderr, one per line, and how many more there are, with a remark on them."""
    for item in items[:most]:
        note(f"{label}: {item}")
    if len(items) > most:
        note(f"{label}: {len(items) - most} more{remark}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table on stdout, and above it the title on a line of its own.

    Floats have four decimals, or four significant digits below 0.001; numbers are aligned right; None is a dash.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[for_terminal(cell(value)) for value in row] for row in rows]
    drawn = Table()
    for number, name in enumerate(columns):
        numeric = all(NUMBER.fullmatch(row[number]) for row in cells)
        drawn.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # in a log or a pipe, lines are not folded
        console.width = 160
    if title:
        print(for_terminal(title))
    console.print(drawn)


def cell(value: Any) -> str:
    """Return a value as text in a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_size(number: float) -> str:
    """Format a number of bytes in the largest unit in which it is at least 1."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def as_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print(json_text(content))


def written(*paths: Path) -> None:
    """Print the paths of written files on stderr."""
    note("written: " + ", ".join(map(str, paths)))


def next_command(*arguments: str | Path) -> None:
    """Print the next command to try on stderr, to be pasted into a shell."""
    note(f"next: {command(*arguments)}")


def command(*arguments: str | Path) -> str:
    """Return a transferkit command that can be pasted into a shell."""
    return shlex.join(["transferkit", *map(str, arguments)])
