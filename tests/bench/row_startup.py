"""Time of `transferkit --help` against importing what training needs."""

import subprocess
import sys
from collections.abc import Iterator

from tests.bench.timing import Row, in_turns


def rows(full: bool) -> Iterator[Row]:
    """Time separate processes, with the files in the system's cache."""

    def python(*arguments: str) -> str:
        return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout

    def help_text() -> str:
        return python("-m", "transferkit", "--help")

    def lightning() -> str:
        return python("-c", "import lightning.pytorch")

    assert "embed" in help_text()
    lightning()
    yield Row("transferkit --help", "import lightning.pytorch", "cheaper", 0.1, *in_turns(help_text, lightning))
