"""Memory in a container, from made-up trees of Linux's control groups."""

from pathlib import Path

import pytest

from tests.runtime.test_cores import system
from transferkit.runtime.free_memory import UNKNOWN, available_memory

MACHINE = (
    "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"
)
GROUP2 = {"memory.max": "3000", "memory.current": "1000", "memory.stat": "anon 700\ninactive_file 250"}
GROUP1 = {
    "memory/docker/abc/memory.limit_in_bytes": "5000",
    "memory/docker/abc/memory.usage_in_bytes": "4900",
    "memory/docker/abc/memory.stat": "cache 30\ntotal_inactive_file 20",
}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", GROUP2, 3000 - 1000 + 250),
        ("0::/\n", {**GROUP2, "memory.max": "max"}, 8000000 * 1024),
        ("0::/\n", {**GROUP2, "memory.max": "100", "memory.stat": "inactive_file 0"}, 0),
        ("0::/\n", {}, 8000000 * 1024),
        ("4:memory:/docker/abc\n", GROUP1, 5000 - 4900 + 20),
    ],
)
def test_what_is_left(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    system(tmp_path, groups, files)
    (tmp_path / "proc/meminfo").write_text(MACHINE)
    assert available_memory(tmp_path) == expected


def test_where_the_system_does_not_say(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == UNKNOWN


def test_here(tmp_path: Path) -> None:
    assert available_memory() > 0
