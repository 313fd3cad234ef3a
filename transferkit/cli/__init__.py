"""The command line: one verb per file in ``commands``, and what the verbs share."""

from transferkit.cli.dispatch import main, run

__all__ = ["main", "run"]
