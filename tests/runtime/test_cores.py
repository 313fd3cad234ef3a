"""Cores under a container's quota, from made-up trees of Linux's control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transferkit.runtime import cores as module
from transferkit.runtime.cores import cores

V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"
V2 = "0::/user.slice/app.scope\n"


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        place = root / "sys/fs/cgroup" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # docker run --cpus 2
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "6400000 100000"}, 16),  # more than there are
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        ("0::/\n", {}, 16),
        (V2, {"user.slice/app.scope/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3),
        (V2, {"user.slice/app.scope/cpu.max": "50000 50000", "user.slice/cpu.max": "300000 100000"}, 1),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "400000", "cpu/docker/abc/cpu.cfs_period_us": "50000"}, 8),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, 16),
        ("0::/\n" + V1, {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"}, 5),  # both at once
    ],
)
def test_a_quota_counts(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert cores(system(tmp_path, groups, files)) == expected


def test_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows, where a process cannot be asked what it is tied to either."""
    assert cores(tmp_path) == 16
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores(tmp_path) == 1


def test_libraries_hear_of_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    module.limit_threads()
    monkeypatch.setattr(module, "quotas", lambda _: iter([3.0]))
    for given, expected in ((None, "3"), ("7", "7")):
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        module.limit_threads()
        assert os.environ["OMP_NUM_THREADS"] == expected


def test_the_front_door_says_so_before_torch_is_there() -> None:
    script = """
import sys
from transferkit.cli import dispatch as cli
cli.limit_threads = lambda: print("torch" in sys.modules, "numpy" in sys.modules)
cli.run(["--version"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "False False"
