"""Memory that this process may still use, also in a container."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from transferkit.runtime.cores import control_groups

UNKNOWN = 4 * 10**9  # bytes, where the system does not say
FILES = {  # version of the control groups -> files of the limit and of what is used, and the cached files within that
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_memory(system: Path = Path("/")) -> int:
    """Return the bytes that are free or can be freed, in the machine and in the process's container.

    Args:
        system: root of the system's files.
    """
    return max(0, min([*of_machine(system), *of_groups(system)], default=UNKNOWN))


def of_machine(system: Path) -> Iterator[int]:
    """Yield the bytes that the kernel calls available (Linux)."""
    with suppress(OSError, KeyError, ValueError):
        yield 1024 * numbers(system / "proc/meminfo")["MemAvailable:"]


def of_groups(system: Path) -> Iterator[int]:
    """Yield what each control group of this process has left, if it is limited (Linux)."""
    for group, version in control_groups("memory", system):
        limit, used, cached = FILES[version]
        with suppress(OSError, KeyError, ValueError):  # no such file, or no limit: "max"
            left = int((group / limit).read_text()) - int((group / used).read_text())
            yield left + numbers(group / "memory.stat")[cached]


def numbers(file: Path) -> dict[str, int]:
    """Read a file of names and numbers, one pair per line."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return {parts[0]: int(parts[1]) for parts in lines if len(parts) > 1}
