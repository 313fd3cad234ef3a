import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transferkit.errors import UserError
from transferkit.runtime import files
from transferkit.runtime.files import TEMPORARY, atomic_path, cache_dir, check_folder, discard, exchange, sweep


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file grows beyond 1000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_whole_under_new_folders(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "table.csv"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent, "on the same file system"
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == {"table.csv"}


def interrupted(target: Path, directory: bool) -> None:
    """Write half of the target."""
    with atomic_path(target, folder=directory) as temporary:
        (temporary / "new" if directory else temporary).write_text("new")
        raise KeyboardInterrupt


@pytest.mark.parametrize("directory", [False, True])
def test_an_exception_leaves_the_target_and_no_temporary(tmp_path: Path, directory: bool) -> None:
    target = tmp_path / "target"
    old = target / "old" if directory else target
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(target, directory)
    assert names(tmp_path) == {"target"}
    assert old.read_text() == "old"


def test_a_full_disk_is_said_and_leaves_the_target(tmp_path: Path, full_disk: None) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    message = f"^cannot write {target}: File too large; choose another path or free disk space$"
    with pytest.raises(UserError, match=message), atomic_path(target) as temporary:
        temporary.write_text("x" * 2000)
    assert target.read_text() == "old"
    assert names(tmp_path) == {"table.csv"}


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file/x: "), atomic_path(tmp_path / "file/x"):
        pytest.fail("there is no such place")
    with pytest.raises(UserError, match="Is a directory"), atomic_path(tmp_path / "folder") as temporary:
        temporary.write_text("a file")
    assert names(tmp_path) == {"file", "folder"}


@pytest.mark.parametrize("place", ["file", "file/within", "file/with/in", "link/within"])
def test_folders_that_cannot_be_made(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("link").symlink_to("nowhere")
    what = tmp_path / place.split("/")[0]
    with pytest.raises(UserError, match=f"^cannot write into {place}: {what} is not a folder; choose another path$"):
        check_folder(place)
    check_folder("new/folder")
    check_folder("")
    monkeypatch.setattr(files.os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f"^cannot write into new/folder: no right to write in {tmp_path}; choose"):
        check_folder("new/folder")
    assert names(tmp_path) == {"file", "link"}


def test_errors_of_other_files_are_not_the_targets(tmp_path: Path) -> None:
    """Also of one that lies beside it."""
    with pytest.raises(FileNotFoundError, match="picture"), atomic_path(tmp_path / "out"):
        (tmp_path / "picture.jpg").read_bytes()
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "out", folder=True) as temporary:
        (temporary / "within" / "x").write_text("")


def test_a_target_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_path("name") as temporary:
        temporary.write_text("x")
    with pytest.raises(FileNotFoundError, match="other"), atomic_path("name"):
        Path("other").read_bytes()
    assert names(tmp_path) == {"name"}


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_directory_takes_the_place_of_another(
    tmp_path: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_step:
        monkeypatch.setattr(files.os, "name", "another")
    target = tmp_path / "target"
    for content in ("old", "new"):
        with atomic_path(target, folder=True) as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path) == {"target"}
    assert names(target) == {"new"}


def test_exchange_has_no_moment_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two renames would have one: here they are forbidden."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def rename(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "not in one step")

    monkeypatch.setattr(Path, "rename", rename)
    exchange(tmp_path / "one", tmp_path / "other")
    assert names(tmp_path / "one") == {"other"}
    assert names(tmp_path / "other") == {"one"}


def test_a_failing_second_rename_puts_the_first_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "name", "another")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "other")
    assert names(tmp_path) == {"other"}


def test_discard(tmp_path: Path) -> None:
    (tmp_path / "folder" / "within").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "file", "link", "absent", "file/within"):
        discard(tmp_path / name)
    assert names(tmp_path) == {"kept"}


KILLED = """
import os, signal, sys
from transferkit.runtime.files import atomic_path
begun = [atomic_path(os.path.join(sys.argv[1], name), name == "folder") for name in ("file", "a\\nb[", "folder")]
for writing in begun:
    writing.__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    """And nothing else: what other programs call temporary, what a living process of whatever name space writes."""
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert len(names(tmp_path)) == 3 and all(map(TEMPORARY.fullmatch, names(tmp_path)))
    kept = {".a.0123abcd-7.tmp", ".a.0123456789abcdeg.tmp", "a.tmp", "a.0123456789abcdef.tmp"}
    for name in kept:
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "living") as temporary, atomic_path(tmp_path / "too", folder=True) as folder:
        assert names(tmp_path) == {*kept, temporary.name, folder.name}
        temporary.write_text("")  # the lock is not the writer's descriptor
        with folder.joinpath("within").open("w"):
            sweep(tmp_path)
        assert names(tmp_path) == {*kept, temporary.name, folder.name}
    assert names(tmp_path) == {*kept, "living", "too"}


@pytest.mark.parametrize("reason", ["system", "file system"])
def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """On Windows, and over network file systems that have none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if reason == "system":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", refuse)
    old, new = ".old.0123456789abcdef.tmp", ".new.0123456789abcdef.tmp"
    for name in (old, new):
        (tmp_path / name / "within").mkdir(parents=True)
    past = time.time() - files.ABANDONED - 60
    os.utime(tmp_path / old / "within", (past, past))
    for name in (old, new):
        os.utime(tmp_path / name, (past, past))
    with atomic_path(tmp_path / "target") as temporary:
        sweep(tmp_path)
        temporary.write_text("x")
    assert names(tmp_path) == {new, "target"}, "a file within the other is new"


WRITER = """
import sys, time
from pathlib import Path
from transferkit.runtime.files import atomic_path, sweep
folder, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(rounds):
    with atomic_path(folder / name, folder=name == "folder") as temporary:
        sweep(folder)
        file = temporary / "within" if name == "folder" else temporary
        file.write_text(f"{number} " * 100)
        (folder / f"{name} writes").touch()
        time.sleep(0.02)
        assert file.read_text() == f"{number} " * 100
"""


def contained(*arguments: object) -> list[str]:
    """A command line that runs Python in a PID name space of its own, as a container does."""
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, *map(str, arguments)]


def can_contain() -> bool:
    return subprocess.run([*contained("-c", "")], capture_output=True, check=False).returncode == 0


@pytest.mark.kill
@pytest.mark.skipif(not shutil.which("unshare") or not can_contain(), reason="no right to make a PID name space")
def test_two_containers_share_a_folder(tmp_path: Path) -> None:
    """One is killed again and again; the other, whose processes have the same numbers, loses nothing."""
    draw = random.Random(0)
    with subprocess.Popen(contained("-c", WRITER, tmp_path, "file", 10_000), stderr=subprocess.PIPE) as steady:
        for number in range(20):
            name = ("folder", "other")[number % 2]
            (tmp_path / f"{name} writes").unlink(missing_ok=True)
            with subprocess.Popen(contained("-c", WRITER, tmp_path, name, 10_000)) as other:
                while not (tmp_path / f"{name} writes").exists():
                    time.sleep(0.005)
                time.sleep(draw.uniform(0, 0.05))
                other.kill()
            assert steady.poll() is None, steady.stderr and steady.stderr.read().decode()
        steady.kill()
    left, end = {"file", "other", "folder", "file writes", "other writes", "folder writes"}, time.monotonic() + 10
    while names(tmp_path) != left and time.monotonic() < end:  # the killed are a moment in dying
        sweep(tmp_path)
    assert names(tmp_path) == left
    for file in ("file", "other", "folder/within"):
        words = (tmp_path / file).read_text().split()
        assert len(words) == 100 and len(set(words)) == 1


@pytest.mark.parametrize("directory", [False, True])
def test_threads_that_write_one_target(tmp_path: Path, directory: bool) -> None:
    """Each writes a whole of its own, and the last one stays."""
    start = threading.Barrier(4)

    def write(number: int) -> None:
        start.wait()
        for _ in range(20):
            with atomic_path(tmp_path / "target", folder=directory) as temporary:
                for name in ("a", "b"):
                    with (temporary / name if directory else temporary).open("a") as file:
                        file.write(f"{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert names(tmp_path) == {"target"}
    parts = tmp_path.glob("target/*") if directory else [tmp_path / "target"]
    written = "".join(part.read_text() for part in parts)
    assert len(written) == 2 and len(set(written)) == 1


@pytest.mark.parametrize("directory", [False, True])
def test_a_link_is_written_through(tmp_path: Path, directory: bool) -> None:
    """To what it leads to, as open() does; the temporary lies on that disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "again").symlink_to("link")
    (tmp_path / "link").symlink_to(disk / "real")
    for content in ("first", "second"):
        with atomic_path(tmp_path / "again", folder=directory) as temporary:
            assert temporary.parent == disk
            (temporary / "within" if directory else temporary).write_text(content)
    assert (tmp_path / "again").readlink() == Path("link") and (tmp_path / "link").readlink() == disk / "real"
    assert names(disk) == {"real"} and names(tmp_path) == {"again", "link", "disk"}
    assert (disk / "real" / "within" if directory else disk / "real").read_text() == "second"


def test_links_that_lead_nowhere_to_write(tmp_path: Path) -> None:
    """A disk that is not there is not made up."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "unmounted").symlink_to(tmp_path / "disk" / "file")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, reason in (("loop", "Too many levels"), ("unmounted", "No such file"), ("null", "a device cannot be")):
        message = f"^cannot write {tmp_path}/{name}: {reason}"
        with pytest.raises(UserError, match=message), atomic_path(tmp_path / name) as temporary:
            temporary.write_text("")
    assert names(tmp_path) == {"loop", "unmounted", "null"}


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("TRANSFERKIT_CACHE", "~/mine")
    assert cache_dir() == Path("/home/somebody/mine")
    monkeypatch.delenv("TRANSFERKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir() == Path("/cache/transferkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/somebody/.cache/transferkit")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("folder", [False, True])
def test_the_umask_decides_who_may_read(umask: int, folder: bool, tmp_path: Path) -> None:
    """Whatever a library does with the temporary: safetensors writes another file for the owner alone."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "new", folder=folder) as temporary:
            file = temporary / "inner" / "model.safetensors" if folder else temporary
            file.parent.mkdir(exist_ok=True)
            save_file({"weight": torch.zeros(2)}, file)
            file.chmod(0o600)
    finally:
        os.umask(before)
    written = tmp_path / "new" / "inner" / "model.safetensors" if folder else tmp_path / "new"
    assert written.stat().st_mode & 0o777 == 0o666 & ~umask
