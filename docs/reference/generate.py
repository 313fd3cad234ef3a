"""Hook of the documentation: the page of commands is what their ``--help`` prints."""

import contextlib
import io
import os
from typing import Any

from mkdocs.structure.files import File, Files

from transferkit.cli.dispatch import VERBS, run

PAGE = "reference/commands.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the page of commands."""
    files.append(File.generated(config, PAGE, content=commands()))
    return files


def commands() -> str:
    """Return the help of every verb as Markdown."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands"]
    for verb, (_, purpose) in VERBS.items():
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run([verb, "--help"])
        parts.append(f"## {verb}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{out.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"
