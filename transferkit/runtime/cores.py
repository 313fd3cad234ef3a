"""Processor cores that this process may use, in a container too."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cores(system: Path = Path("/")) -> int:
    """As many as the process is tied to, and as its container's quota lets run at a time; at least one.

    Args:
        system: root of the system's files.
    """
    return max(1, min([tied(), *map(math.ceil, quotas(system))]))


def tied() -> int:
    """Cores that the process is tied to: all of them, unless somebody has said otherwise (``taskset``)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quotas(system: Path = Path("/")) -> Iterator[float]:
    """Cores that each control group of this process may use on average, where there is such a limit (Linux)."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    groups = system / "sys/fs/cgroup"
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = groups / controllers if controllers else groups
        mount = mount if mount.is_dir() else groups / "cpu"
        inner = Path(place.lstrip("/"))
        for group in (mount / inner, *(mount / outer for outer in inner.parents)):  # a container may see only the last
            with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit: "max", -1
                quota, period = limit(group, version=1 if controllers else 2)
                if quota > 0:
                    yield quota / period


def limit(group: Path, version: int) -> tuple[int, int]:
    """Microseconds that a control group may compute in each period of as many.

    Raises:
        OSError: it says nothing of it.
        ValueError: it has no limit.
    """
    if version == 2:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota), int(period)
    quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)


def limit_threads() -> None:
    """Keep numeric libraries, which know of no quota, from starting a thread for every core of the machine.

    To be called before they are imported. What the user has set stays.
    """
    if cores() < tied():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
