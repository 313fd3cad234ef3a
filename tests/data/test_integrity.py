"""Decoding once: what is remembered, what makes it forgotten, and how broken images are named."""

import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from transferkit import __version__
from transferkit.data import memory
from transferkit.data.fingerprint import stamp
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.integrity import raise_broken, recall, remember, verify, verify_together
from transferkit.errors import UserError
from transferkit.images.decoding import decoders, read_image
from transferkit.images.error import Fault
from transferkit.runtime.files import cache_dir
from transferkit.runtime.ranks import Ranks

Decoded = list[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    return cache_dir()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Names of the files that were really decoded."""
    names: Decoded = []

    def noted(path: Path) -> object:
        names.append(Path(path).name)
        return read_image(path)

    monkeypatch.setattr("transferkit.data.image_table.read_image", noted)
    return names


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    """Four good images, one cut short, one that is text, one link to nowhere."""
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for number in range(5):
        Image.effect_noise((64, 48), 90).convert("RGB").save(folder / "a" / f"{number}.jpg")
    whole = (folder / "a" / "4.jpg").read_bytes()
    (folder / "a" / "4.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "5.png").write_text("<html>404</html>")
    (folder / "a" / "6.png").symlink_to("nowhere")
    return open_images(folder)


def test_broken_images_are_named_and_the_rest_is_decoded_once(table: ImageTable, decoded: Decoded) -> None:
    bad = verify(table)
    assert list(bad) == ["a/4.jpg", "a/5.png", "a/6.png"]
    assert [fault.kind for fault in bad.values()] == ["truncated", "not_an_image", "missing"]
    assert all(fault.detail for fault in bad.values())
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.png", "6.png"]
    decoded.clear()
    assert verify(table) == bad
    assert decoded == ["6.png"], "a file that is not there has no size and time to remember it by"


def test_the_number_of_threads_does_not_matter(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for workers in (1, 4):
        monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / f"cache{workers}"))
        results.append(list(verify(table, workers=workers).items()))
    assert results[0] == results[1]


def test_only_the_rows_asked_for(table: ImageTable, decoded: Decoded) -> None:
    assert list(verify(table, rows=[5, 0])) == ["a/5.png"]
    assert sorted(decoded) == ["0.jpg", "5.png"]
    assert recall(table, rows=[5, 0, 1]).keys() == {"a/0.jpg", "a/5.png"}
    verify(table)
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.png", "6.png"]


def replace_by_good(file: Path) -> None:
    Image.new("RGB", (5, 5)).save(file)


def cut_at_the_same_time(file: Path) -> None:
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes()[:300])
    os.utime(file, ns=times)


def spoil_at_the_same_size(file: Path) -> None:
    file.write_bytes(b"x" * file.stat().st_size)
    os.utime(file, ns=(1, 1))


def replaced_at_the_same_size_and_time(file: Path) -> None:
    """As ``cp -p``, ``rsync -t`` and unpacking do."""
    status, other = file.stat(), file.with_name("other")
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize(
    ("name", "change", "broken"),
    [
        ("4.jpg", replace_by_good, False),
        ("0.jpg", cut_at_the_same_time, True),
        ("0.jpg", spoil_at_the_same_size, True),
        ("0.jpg", replaced_at_the_same_size_and_time, True),
    ],
)
def test_a_changed_file_is_decoded_again(
    table: ImageTable, decoded: Decoded, name: str, change: Callable[[Path], None], broken: bool
) -> None:
    table = table.select(range(6))
    verify(table)
    decoded.clear()
    change(Path(table.root, "a", name))
    assert (f"a/{name}" in verify(table)) == broken
    assert decoded == [name]


def test_callers_that_decoded_can_tell(table: ImageTable, decoded: Decoded) -> None:
    good = table.select(range(5))
    remember(good, {"a/0.jpg": None, "a/1.jpg": None})
    cut = Fault("truncated", "truncated JPEG")
    remember(good, {"a/4.jpg": cut})
    assert recall(good) == {"a/0.jpg": None, "a/1.jpg": None, "a/4.jpg": cut}
    assert verify(good) == {"a/4.jpg": cut}
    assert sorted(decoded) == ["2.jpg", "3.jpg"]


def test_what_the_system_says_is_not_remembered(table: ImageTable) -> None:
    faults = [Fault.of(OSError(number, os.strerror(number))) for number in errno.errorcode]
    assert {fault.kind for fault in faults} == {"missing", "denied", "link_loop", "system"}
    for fault in faults:
        remember(table, {"a/0.jpg": fault})
    assert recall(table) == {}


def test_a_memory_of_an_earlier_version_is_not_read(table: ImageTable, cache: Path) -> None:
    """It held reasons as text, under a name of its own: those images are decoded again."""
    key = "\0".join((table.root, "stamps", __version__, decoders()))
    earlier = cache / "decoded" / f"{sha256(key.encode()).hexdigest()[:32]}.sqlite"
    earlier.parent.mkdir(parents=True)
    with closing(sqlite3.connect(earlier)) as file, file:
        file.execute("CREATE TABLE images (path TEXT PRIMARY KEY, stamp TEXT, reason TEXT) WITHOUT ROWID")
        row = ("a/0.jpg", stamp(Path(table.root, "a/0.jpg")), "truncated JPEG")
        file.execute("INSERT INTO images VALUES (?, ?, ?)", row)
    before = earlier.read_bytes()
    assert list(verify(table)) == ["a/4.jpg", "a/5.png", "a/6.png"] and earlier.read_bytes() == before


def test_folders_are_remembered_apart(table: ImageTable, tmp_path: Path, decoded: Decoded) -> None:
    verify(table)
    decoded.clear()
    Path(table.root).rename(tmp_path / "moved")
    moved = open_images(tmp_path / "moved")
    assert recall(moved) == {}
    verify(moved)
    assert len(decoded) == 7


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nothing", None])
def test_a_damaged_memory_is_ignored_and_rebuilt(
    table: ImageTable, cache: Path, decoded: Decoded, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    bad = verify(table)
    (file,) = (cache / "decoded").iterdir()
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        assert verify(table) == bad
    assert "it is damaged" in caplog.text
    assert len(decoded) == 7
    decoded.clear()
    verify(table)
    assert decoded == ["6.png"]


def test_a_cache_that_cannot_be_written_costs_a_warning(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert len(verify(table)) == 3
    assert "will be checked again next time" in caplog.text


def test_what_was_found_before_an_interruption_is_kept(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> object:
        if Path(path).name == "3.jpg":
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr("transferkit.data.image_table.read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(table, workers=1)
    assert recall(table) == {"a/0.jpg": None, "a/1.jpg": None, "a/2.jpg": None}


def test_many_rounds_find_what_one_finds(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.data.integrity.ROUND", 2)
    assert list(verify(table)) == ["a/4.jpg", "a/5.png", "a/6.png"]
    assert len(recall(table)) == 6


def test_each_image_is_written_once(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are remembered already: else the cost of a pass would grow with the square of the images."""
    written: list[int] = []
    insert = memory.insert

    def counted(file: Path, rows: list[tuple[object, ...]]) -> None:
        written.append(len(rows))
        insert(file, rows)

    monkeypatch.setattr(memory, "insert", counted)
    monkeypatch.setattr("transferkit.data.integrity.ROUND", 2)
    verify(table.select(range(6)))
    assert written == [2, 2, 2]


def test_two_processes_lose_nothing(table: ImageTable) -> None:
    """Nor do threads, each with a connection of its own."""
    good = table.select(range(5))
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda path: remember(good, {path: None}), good.paths))
    assert recall(good) == dict.fromkeys(good.paths)


def test_processes_share_the_work(table: ImageTable, decoded: Decoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decodes a share, and all hear of every broken image."""
    shares = [verify(table, range(rank, 7, 2)) for rank in range(2)]
    assert len(decoded) == 7
    decoded.clear()

    def run_on_all(self: Ranks, work: Callable[[], dict[str, Fault]]) -> list[dict[str, Fault]]:
        assert work() == shares[1]
        return shares

    with monkeypatch.context() as patch:
        patch.setattr(Ranks, "run_on_all", run_on_all)
        assert list(verify_together(table, Ranks(1, 2)).items()) == list(verify(table).items())
    assert set(decoded) <= {"6.png"}, "which is not there, and so not remembered"
    assert verify_together(table, Ranks()) == verify(table)


def test_digits_need_no_decoding(cache: Path) -> None:
    table = open_images("digits").select(range(5))
    assert verify(table) == {}
    assert recall(table) == dict.fromkeys(table.paths)
    remember(table, {"0000.png": None})
    assert not cache.exists()


def test_one_line_names_the_first_broken_images_of_each_reason() -> None:
    raise_broken({}, "a")
    bad = {f"a/{number}\n.jpg": "truncated JPEG" for number in range(30)} | {"x.jpg": "empty file"}
    with pytest.raises(UserError) as caught:
        raise_broken(bad, "a", of=40)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert message.startswith(r"31 broken images: 'a/0\n.jpg': truncated JPEG; 'a/1\n.jpg': truncated JPEG; ")
    assert message.count(".jpg") == 4 and "'x.jpg': empty file" in message
    assert "; and 27 more: truncated JPEG (scan 'a' to see all); repair" in message
    assert 'leave out with `on_error="skip"`' in message


@pytest.mark.parametrize("there", [0, 1, 9])
def test_a_manifest_whose_files_are_elsewhere(there: int) -> None:
    missing = {f"{number:04d}.jpg": os.strerror(errno.ENOENT).lower() for number in range(5000 - there)}
    with pytest.raises(UserError) as caught:
        raise_broken(missing, "lists/many.csv", of=5000)
    of = "of the 5,000 files that 'lists/many.csv' lists"
    some = f"none {of} is" if there == 0 else f"{5000 - there:,} {of} are not"
    remedy = 'give the folder that contains them as `image_root="DIR"`'
    assert str(caught.value) == f"{some} there, such as '0000.jpg'; {remedy}"
    for given, of in (
        ({"0.jpg": missing["0000.jpg"]}, 9),
        (missing, None),
        (dict.fromkeys(missing, "empty file"), 5000),
    ):
        with pytest.raises(UserError, match="broken image"):
            raise_broken(given, "lists/many.csv", of=of)
