import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from transferkit import files
from transferkit.errors import UserError
from transferkit.files import MACHINE, atomic_path, cache_dir, check_folder, discard, exchange


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
    with atomic_path(target) as temporary:
        if directory:
            temporary.mkdir()
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
    message = f"^cannot write {target}: File too large; choose another place or free room$"
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
    with pytest.raises(UserError, match=f"^cannot write into {place}: {what} is no folder; choose another place$"):
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
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "out") as temporary:
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
        with atomic_path(target) as temporary:
            temporary.mkdir()
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


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    """Of this machine, and of processes that are no more; each folder once."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    stale = [f".a.{MACHINE}-{ended.pid}.tmp", f".a\nb[.{MACHINE}-{ended.pid}.tmp", f".d.{MACHINE}-{ended.pid}.tmp"]
    kept = [f".a.{MACHINE}-{os.getppid()}.tmp", f".a.00000000-{ended.pid}.tmp", f".a.{MACHINE}-x.tmp", "a.tmp"]
    for name in (*stale[:2], *kept):
        (tmp_path / name).touch()
    (tmp_path / stale[2] / "within").mkdir(parents=True)
    for _ in range(2):
        with atomic_path(tmp_path / "new") as temporary:
            temporary.touch()
    assert names(tmp_path) == {"new", *kept}


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("TRANSFERKIT_CACHE", "~/mine")
    assert cache_dir() == Path("/home/somebody/mine")
    monkeypatch.delenv("TRANSFERKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir() == Path("/cache/transferkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/somebody/.cache/transferkit")
