"""Processor cores that this process may use, also in a container."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cores(system: Path = Path("/")) -> int:
    """Return the smaller of the process's CPU affinity and its container's quota, at least 1.

    Args:
        system: root of the system's files.
    """
    return max(1, min([affinity(), *map(math.ceil, quotas(system))]))


def affinity() -> int:
    """Return the number of cores that the process may run on: all, unless it was restricted (``taskset``)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quotas(system: Path = Path("/")) -> Iterator[float]:
    """Yield the cores that each control group of this process may use on average, if limited (Linux)."""
    for group, version in control_groups("cpu", system):
        with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit: "max", -1
            quota, period = limit(group, version)
            if quota > 0:
                yield quota / period


def control_groups(controller: str, system: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the control groups that this process is in, and the version, 1 or 2 (Linux).

    Args:
        controller: what they limit: ``cpu`` or ``memory``.
        system: root of the system's files.
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    groups = system / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = groups / controllers if controllers else groups
        mount = mount if mount.is_dir() else groups / controller
        inner = Path(path.lstrip("/"))
        for group in (mount / inner, *(mount / outer for outer in inner.parents)):  # a container may see only the last
            yield group, 1 if controllers else 2


def limit(group: Path, version: int) -> tuple[int, int]:
    """Return the quota and the period of a control group, in microseconds.

    Raises:
        OSError: the file does not exist.
        ValueError: there is no limit.
    """
    if version == 2:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota), int(period)
    quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)


def limit_threads() -> None:
    """Limit the threads of numeric libraries, which ignore quotas and would start one per core of the machine.

    Call it before they are imported. A value that the user has set is kept.
    """
    if cores() < affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
