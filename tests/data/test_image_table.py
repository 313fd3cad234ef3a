"""Sources: every layout against torchvision's ImageFolder or a hand-written table; every refusal's line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from transferkit.data.image_table import ImageTable, check_trainable, open_images
from transferkit.errors import UserError
from transferkit.images.decoding import ImageError


def make(root: Path, *names: str) -> Path:
    """Write a small picture under each name; a name that ends in / is an empty folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (255, 0, 0)).save(path, format="PNG")
    return root


def rows(table: ImageTable) -> list[tuple[str, str | None, str | None]]:
    return list(zip(table.paths, table.labels, table.splits, strict=True))


def refusal(table: ImageTable) -> str:
    with pytest.raises(UserError) as caught:
        check_trainable(table)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message, "every line says how to go on"
    return message


def test_class_folders_are_those_of_torchvision(tmp_path: Path) -> None:
    make(tmp_path, "b/2.png", "b/10.png", "a/deep/er/1.png", "a/x.jpg", "Z/q.webp", "ß/u.png")
    expected = ImageFolder(str(tmp_path))
    table = open_images(tmp_path)
    assert table.class_names == expected.classes
    found = {(str(tmp_path / path), label) for path, label in zip(table.paths, table.labels, strict=True)}
    assert found == {(path, expected.classes[target]) for path, target in expected.samples}
    assert list(table.paths) == sorted(table.paths)
    assert set(table.splits) == {None}
    check_trainable(table)


def test_split_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", "valid/a/2.png", "valid/b/2.png", "test/a/deep/3.png")
    table = open_images(tmp_path)
    assert rows(table) == [
        ("test/a/deep/3.png", "a", "test"),
        ("train/a/1.png", "a", "train"),
        ("train/b/1.png", "b", "train"),
        ("valid/a/2.png", "a", "val"),
        ("valid/b/2.png", "b", "val"),
    ]
    check_trainable(table)


@pytest.mark.parametrize("word", ["val", "Valid", "validation", "VALIDATION"])
def test_words_for_val(tmp_path: Path, word: str) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", f"{word}/a/2.png")
    assert set(open_images(tmp_path).splits) == {"train", "val"}


def test_flat_splits_and_flat_folders_have_no_labels(tmp_path: Path) -> None:
    make(tmp_path, "splits/train/1.png", "splits/val/2.png", "flat/b.png", "flat/a.png")
    assert rows(open_images(tmp_path / "splits")) == [
        ("train/1.png", None, "train"),
        ("val/2.png", None, "val"),
    ]
    flat = open_images(tmp_path / "flat")
    assert rows(flat) == [("a.png", None, None), ("b.png", None, None)]
    assert refusal(flat).startswith(f"no labels in {str(tmp_path / 'flat')!r}")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, "bus/1.png", "car/1.png", "train/1.png")
    assert open_images(tmp_path).class_names == ["bus", "car", "train"]


def test_one_image(tmp_path: Path) -> None:
    table = open_images(make(tmp_path, "a.png", "b.png") / "a.png")
    assert rows(table) == [("a.png", None, None)]
    assert table.root == str(tmp_path.resolve())
    assert torch.equal(table.read(0), torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 3, 4))


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a/1.PNG",
        "a/imageNotFound.gif",
        "a/.hidden.png",
        "a/._1.png",
        ".git/2.png",
        "__MACOSX/a/3.png",
    )
    for name in ("Thumbs.db", "notes.txt", "desktop.ini", "png"):
        (tmp_path / "a" / name).write_text("no image")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    table = open_images(tmp_path)
    assert table.paths == ("a/1.PNG", "a/imageNotFound.gif")
    assert table.empty == ()


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    make(tmp_path, "data/a/1.png", "elsewhere/2.png")
    data = tmp_path / "data"
    (data / "b").symlink_to(tmp_path / "elsewhere")
    (data / "a" / "up").symlink_to(data)
    (data / "a" / "self").symlink_to(data / "a" / "self")
    (data / "a" / "self.png").symlink_to(data / "a" / "self.png")
    (data / "a" / "gone.png").symlink_to(tmp_path / "gone.png")
    table = open_images(data)
    assert table.paths == ("a/1.png", "a/gone.png", "a/self.png", "b/2.png")
    for name in ("a/gone.png", "a/self.png"):
        with pytest.raises(ImageError):
            table.read(table.paths.index(name))


def test_digits_are_those_of_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table, bunch = open_images("digits"), load_digits()
    assert len(table) == 1797
    assert table.paths[42] == "0042.png"
    assert list(table.labels) == [str(target) for target in bunch.target]
    for row in (0, 1, 42, 1796):
        pixels = table.read(row)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 8, 8)
        assert torch.equal(pixels[0], pixels[2])
        assert np.abs(pixels[0].numpy() / 255 * 16 - bunch.images[row]).max() <= 0.5 / 255 * 16 + 1e-9
    last = table.select([1796, 42])
    assert last.paths == ("0042.png", "1796.png")
    assert torch.equal(last.read(1), table.read(1796))
    table.read(0).zero_()
    assert table.read(0).any(), "a caller's change must not reach the next reader"


def test_a_folder_called_digits_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "digits", "one/1.png")
    monkeypatch.chdir(tmp_path)
    assert open_images("digits").paths == ("one/1.png",)


def test_manifest_csv_and_parquet_agree(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"path": ["y/2.png", "y/1.png", "x/1.png"], "label": [7, 8, 7], "split": ["val", "train", None]}
    )
    frame.to_csv(tmp_path / "m.csv", index=False)
    frame.to_parquet(tmp_path / "m.parquet")
    expected = [("x/1.png", "7", None), ("y/1.png", "8", "train"), ("y/2.png", "7", "val")]
    assert rows(open_images(tmp_path / "m.csv")) == expected
    assert rows(open_images(tmp_path / "m.parquet")) == expected


def test_select_keeps_order_and_reads_the_same_image(tmp_path: Path) -> None:
    table = open_images(make(tmp_path, "a/1.png", "b/2.png", "b/3.png"))
    chosen = table.select([2, 0, 2])
    assert rows(chosen) == [("a/1.png", "a", None), ("b/3.png", "b", None)]
    assert len(table.select([])) == 0
    assert "no training images" in refusal(table.select([]))


def test_a_table_must_be_sorted_and_unique() -> None:
    for paths in (("b", "a"), ("a", "a")):
        with pytest.raises(ValueError, match="sorted and unique"):
            ImageTable("/", paths, (None, None), (None, None))
    with pytest.raises(ValueError, match="length"):
        ImageTable("/", ("a",), (), (None,))


def test_fingerprint_changes_with_name_size_and_time_only(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", "a/1.png", "b/2.png")
    first = open_images(folder).fingerprint()
    assert first == open_images(folder).fingerprint()
    moved = folder.rename(tmp_path / "two")
    assert open_images(moved).fingerprint() == first
    seen = {first}
    os.utime(moved / "a/1.png", ns=(1, 1))
    seen.add(open_images(moved).fingerprint())
    with (moved / "a/1.png").open("ab") as file:
        file.write(b"!")
    os.utime(moved / "a/1.png", ns=(1, 1))
    seen.add(open_images(moved).fingerprint())
    (moved / "a/1.png").rename(moved / "a/3.png")
    seen.add(open_images(moved).fingerprint())
    seen.add(open_images(moved).select([0]).fingerprint())
    (moved / "a/3.png").unlink()
    (moved / "a/3.png").symlink_to("nowhere")
    seen.add(open_images(moved).fingerprint())
    assert len(seen) == 6
    assert open_images("digits").fingerprint() != open_images("digits").select(range(9)).fingerprint()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/1.png"], "a single class, 'a', in {root}"),
        (["a/1.png", "b/2.png", "c/"], "no images in the folder 'c' of {root}"),
        (["train/a/1.png", "train/b/1.png", "val/"], "no images in the folder 'val' of {root}"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/"],
            "no images in the folder 'val/b' of {root}",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "val/wasps/1.png", "val/a/1.png"],
            "class 'wasps' is in val but not in train of {root}",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/c/1.png"],
            "class 'c' is in test but not in train of {root}",
        ),
        (["val/a/1.png", "val/b/1.png"], "no training images in {root}"),
        (["a/1.png", "b/1.png", "stray.png"], "labels are missing for 1 of 3 images in {root}: 'stray.png'"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/2.png"], "labels are missing for 1 of 4"),
        (["train/a/1.png", "train/b/1.png", "val/2.png"], "labels are missing for 1 of 3"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path: Path, names: list[str], expected: str) -> None:
    message = refusal(open_images(make(tmp_path, *names)))
    assert message.startswith(expected.format(root=repr(str(tmp_path))))


def test_a_test_split_may_be_labelless(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png")
    table = open_images(tmp_path)
    assert table.labels == (None, None, "a", "b")
    check_trainable(table)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "no images in "),
        (["a/", "b/"], "no images in "),
        (
            ["train/a/1.png", "val/a/1.png", "other/a/1.png"],
            "contains the splits 'train', 'val' and also 'other'",
        ),
    ],
)
def test_folders_that_cannot_be_opened(tmp_path: Path, names: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        open_images(make(tmp_path, *names))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    os.mkfifo(tmp_path / "pipe.csv")
    cases: list[tuple[str | Path, str]] = [
        (tmp_path / "gone", "no such folder or file: .*No such file.*check the path"),
        (tmp_path / ("n" * 300), "no such folder or file: .*name too long"),
        ("nul\0byte", r"no such folder or file: 'nul\\x00byte'"),
        ("~no-such-user-here/x", "no such folder or file"),
        (tmp_path / "notes.txt", "is not an image, .csv or .parquet"),
        (tmp_path / "pipe.csv", "neither a folder nor a regular file"),
    ]
    for source, expected in cases:
        with pytest.raises(UserError, match=expected):
            open_images(source)


def test_names_are_printed_safely(tmp_path: Path) -> None:
    make(tmp_path, "a\n\x1b[31m/1.png")
    message = refusal(open_images(tmp_path))
    assert "\x1b" not in message
    assert r"'a\n\x1b[31m'" in message


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UserError, match=r"file name b'caf\\xe9.png' is not UTF-8; rename it"):
        open_images(folder)
