"""The command line: one verb per file in ``commands``, and what they share."""

from transferkit.cli.dispatch import main, run

__all__ = ["main", "run"]
