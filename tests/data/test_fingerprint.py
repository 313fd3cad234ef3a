"""Files of equal size and equal times that differ are told apart, whatever has set their times."""

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data import fingerprint
from transferkit.data.fingerprint import same, stamp
from transferkit.data.image_table import open_images
from transferkit.data.integrity import recall, verify

RAW = ("bmp", "ppm", "tif")  # formats without compression: their size tells nothing
TICK = 0.02  # seconds: the system's clock of files is that coarse
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 has brought filters


def draw(path: Path, seed: int, side: int = 96) -> Path:
    """Noise in the middle of a white page; no block at the start, middle or end of the file tells more than that."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[side // 4 : side // 3] = np.random.default_rng(seed).integers(0, 256, (side // 3 - side // 4, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    os.utime(path, (0, 0))
    return path


@pytest.mark.parametrize("suffix", RAW)
def test_two_folders_with_normalised_times(suffix: str, tmp_path: Path) -> None:
    """As tar, zip, rsync -t or an image's layer leave them."""
    for seed, name in enumerate(("one", "two")):
        for number in range(2):
            draw(tmp_path / name / f"{number}.{suffix}", 10 * seed + number)
        time.sleep(TICK)
    one, two = (open_images(tmp_path / name) for name in ("one", "two"))
    for path in one.paths:
        first, second = ((tmp_path / name / path).stat() for name in ("one", "two"))
        assert (first.st_size, first.st_mtime_ns) == (second.st_size, second.st_mtime_ns), "the test itself"
    assert one.fingerprint() != two.fingerprint()
    assert one.fingerprint() == open_images(tmp_path / "one").fingerprint()


@pytest.mark.parametrize("suffix", RAW)
@pytest.mark.parametrize("way", ["cp -p", "tar", "move", "write"])
def test_a_file_replaced_by_another_of_its_size_and_time(suffix: str, way: str, tmp_path: Path) -> None:
    file, other = draw(tmp_path / f"a/1.{suffix}", 1), draw(tmp_path / f"b/1.{suffix}", 2)
    before = stamp(file)
    time.sleep(TICK)
    if way == "cp -p":
        subprocess.run(["cp", "-p", other, file], check=True)
    elif way == "tar":
        with tarfile.open(tmp_path / "t.tar", "w") as archive:
            archive.add(other, f"1.{suffix}")
        with tarfile.open(tmp_path / "t.tar") as archive:
            archive.extractall(file.parent, **SAFELY)
    elif way == "move":
        other.replace(file)
    else:
        file.write_bytes(other.read_bytes())
        os.utime(file, (0, 0))
    assert file.stat().st_mtime_ns == 0
    now = stamp(file)
    assert before and now and now != before and not same(before, now)
    assert stamp(file) == now


@pytest.mark.parametrize("place", ["start", "middle", "end", "anywhere in a small file"])
def test_the_checksum_tells_where_the_times_cannot(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only images are built with all times at 0, the change of the inode included."""
    small = place == "anywhere in a small file"
    content = bytearray(np.random.default_rng(0).bytes(12_000 if small else 1_000_000))
    (tmp_path / "1.bmp").write_bytes(content)
    content[{"start": 5, "middle": 500_000, "end": -5}.get(place, 7_000)] ^= 1
    (tmp_path / "2.bmp").write_bytes(content)
    fstat = os.fstat

    def without_times(descriptor: int) -> os.stat_result:
        fields = list(fstat(descriptor))
        return os.stat_result((*fields[:7], 0, 0, 0), {"st_mtime_ns": 0, "st_ctime_ns": 0})

    monkeypatch.setattr(fingerprint.os, "fstat", without_times)
    one, two = stamp(tmp_path / "1.bmp"), stamp(tmp_path / "2.bmp")
    assert one and two and one.split()[:3] == two.split()[:3] == [str(len(content)), "0", "0"]
    assert one != two


def test_a_renamed_folder_keeps_its_stamps(tmp_path: Path) -> None:
    draw(tmp_path / "one/1.bmp", 1)
    before = open_images(tmp_path / "one").fingerprint()
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_images(tmp_path / "two").fingerprint() == before
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    assert open_images(tmp_path / "three").fingerprint() != before, "a copy is not trusted to be one"


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe", "a loop"])
def test_what_is_not_a_file_has_no_stamp(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "1.bmp"
    make: dict[str, Callable[[], object]] = {
        "a folder": place.mkdir, "a pipe": lambda: os.mkfifo(place), "a loop": lambda: place.symlink_to(place),
    }  # fmt: skip
    make.get(kind, lambda: None)()
    assert stamp(place) is None


def test_an_empty_file_has_one(tmp_path: Path) -> None:
    (tmp_path / "1.bmp").touch()
    assert (stamp(tmp_path / "1.bmp") or "").startswith("0 ")


def test_stamps_of_earlier_versions_are_compared_on_what_they_know() -> None:
    assert same("10 7", "10 7 9 abc") and same("10 7 9 abc", "10 7")
    assert not same("10 8", "10 7 9 abc") and not same("10 7 8 abc", "10 7 9 abc")


@pytest.mark.parametrize("suffix", RAW)
def test_the_memory_of_decoded_images_sees_it_too(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    good = draw(tmp_path / f"a/1.{suffix}", 1)
    table = open_images(tmp_path / "a")
    assert verify(table) == {} and recall(table) == {f"1.{suffix}": None}
    bad = tmp_path / f"b.{suffix}"
    bad.write_bytes(b"\0" * good.stat().st_size)
    os.utime(bad, (0, 0))
    subprocess.run(["cp", "-p", bad, good], check=True)
    assert recall(table) == {}
    assert list(verify(table)) == [f"1.{suffix}"]
