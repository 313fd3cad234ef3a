"""A file whose name has other characters for the same letters: its absence says so."""

import unicodedata
from pathlib import Path

import pytest

from transferkit.data.image_table import open_images
from transferkit.errors import UserError
from transferkit.images.decoding import ImageError, read_image
from transferkit.runtime.unicode_names import other_form

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / f"{NFC}.png").touch()
    if (tmp_path / NFC).exists():
        pytest.skip("the file system takes both for one")
    return tmp_path


def test_a_missing_image_is_told_with_the_name_that_is_there(folder: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(folder / NFD / f"{NFD}.png")
    same = "in another Unicode form; rename one of them"
    assert str(caught.value) == (
        rf"no such file or directory, but 'caf\xe9.png' has the letters of 'cafe\u0301.png' {same}"
    )
    with pytest.raises(ImageError, match=r"but 'cafe\\u0301' has the letters of 'caf\\xe9' in another"):
        read_image(folder / NFC / "any.png")


def test_so_is_a_missing_folder(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder or file: .*in another Unicode form"):
        open_images(folder / NFC)


def test_of_other_missing_files_there_is_nothing_to_say(folder: Path) -> None:
    for path in (folder / NFD / "a.png", folder / NFD / "é.png", Path(f"/no/where/{NFC}"), folder / NFD, Path("é\0")):
        assert other_form(path) == ""
