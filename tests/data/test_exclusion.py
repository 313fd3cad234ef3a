"""Images that a file names are left out, and nothing else is."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.exclusion import leave_out
from transferkit.data.image_table import open_images
from transferkit.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_named_images_are_left_out(photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = open_images(photo_folder)
    file = write(tmp_path / "out.csv", "path\ntrain/apples/0.jpg\nval/limes/1.png\nnowhere.jpg\n")
    kept = leave_out(table, file)
    assert set(table.paths) - set(kept.paths) == {"train/apples/0.jpg", "val/limes/1.png"}
    assert "names images that are not in" in caplog.text and "'nowhere.jpg'" in caplog.text
    assert leave_out(table, None) is table


def test_of_a_reviewed_audit_only_dropped_images_are(photo_folder: Path, tmp_path: Path) -> None:
    table = open_images(photo_folder)
    rows = (
        "path,issue,decision\ntrain/apples/0.jpg,label,drop\ntrain/apples/1.png,label,keep\ntrain/apples/2.jpg,dark,\n"
    )
    assert len(leave_out(table, write(tmp_path / "audit.csv", rows))) == len(table) - 1


def test_parquet_is_read_as_well(photo_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    pq.write_table(pa.table({"path": ["train/apples/0.jpg"], "score": [1.0]}), file)
    table = open_images(photo_folder)
    assert len(leave_out(table, str(file))) == len(table) - 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("image\na.jpg\n", "has no column 'path'"), ("path\n\x00\xff", "cannot read"), (None, "cannot read")],
)
def test_bad_files_are_refused(photo_folder: Path, tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "out.csv"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        leave_out(open_images(photo_folder), str(file))


def test_all_images_cannot_be_left_out(photo_folder: Path, tmp_path: Path) -> None:
    table = open_images(photo_folder)
    with pytest.raises(UserError, match="names every image"):
        leave_out(table, write(tmp_path / "all.csv", "path\n" + "\n".join(table.paths)))


def test_the_datamodule_leaves_them_out(photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = write(tmp_path / "out.csv", "path\ntrain/apples/0.jpg\nval/limes/1.png\n")
    data = ImageDataModule(str(photo_folder), exclude=file)
    data.setup("fit")
    assert (len(data.tables["train"]), len(data.tables["val"])) == (11, 11)
    assert "leaves out 2 of 24 images" in caplog.text
