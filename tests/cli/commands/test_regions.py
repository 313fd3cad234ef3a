"""`regions` from the command line."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.extractor.examples import transformer
from tests.running import refused, transferkit
from transferkit.data.embeddings import Embeddings


@pytest.mark.parametrize("method", ["crop", "roi_align"])
def test_regions(photo_folder: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.chdir(photo_folder.parent)
    transformer("vit", "mean").save_pretrained("one")
    Path("boxes.csv").write_text(
        "path,x1,y1,x2,y2,label\nval/limes/2.jpg,0,0,20,20,leaf\ntrain/apples/1.png,-9,5,20,20,\n"
        "val/limes/2.jpg,10,10,40,32,\n"
    )
    done = transferkit("regions", "photos", "--boxes", "boxes.csv", "--extractor", "one", "--method", method)
    assert done.status == 0, done.err
    assert "clipped to its image: row 2, train/apples/1.png -9, 5, 20, 20" in done.err
    assert "written: regions.parquet" in done.err
    table = pq.read_table("regions.parquet").to_pydict()
    assert [table[name] for name in ("path", "box", "x1", "label", "split")] == [
        ["train/apples/1.png", "val/limes/2.jpg", "val/limes/2.jpg"], [2, 1, 3], [0, 0, 10], [None, "leaf", None],
        ["train", "val", "val"],
    ]  # fmt: skip

    again = ["regions", "photos", "--boxes", "boxes.csv", "--extractor", "one", "--method", method]
    assert transferkit(*again).status == 0
    stopped = transferkit(*again[:-1], "crop" if method == "roi_align" else "roi_align")
    assert stopped.status == 2 and "regions.parquet holds results that differ in " in stopped.err
    assert "method (" in stopped.err and stopped.err.endswith("choose another --out or add --overwrite\n")
    done = transferkit(*again, "--overwrite", "--json")
    assert json.loads(done.out) == {
        "boxes": 3, "clipped": 1, "embed_dim": 32, "images": 2, "left_out": 0, "method": method,
        "out": "regions.parquet",
    }  # fmt: skip
    assert transferkit("duplicates", "regions.parquet", "--threshold", "1").status == 0

    Path("boxes.csv").write_text("path,x1,y1,x2,y2\nval/limes/2.jpg,0,0,20,20\nval/limes/22.jpg,0,0,20,20\n")
    stopped = transferkit(*again, "--overwrite")
    assert stopped.status == 2 and "row 2: 'val/limes/22.jpg' is not among the 24 images of photos" in stopped.err
    Path("boxes.csv").write_text("path,x1,y1,x2,y2\nval/limes/2.jpg,50,0,60,20\nval/limes/2.jpg,0,0,9,9\n")
    stopped = transferkit(*again, "--overwrite")
    assert stopped.status == 2 and "row 1: 'val/limes/2.jpg': the box 50, 0, 60, 20 lies outside" in stopped.err
    done = transferkit(*again, "--overwrite", "--on_error", "skip")
    assert done.status == 0 and "left out: row 1" in done.err


@pytest.mark.parametrize("out", ["boxes.csv", "photos/val/limes/2.jpg", "e.parquet", "photos", "boxes.csv/r.parquet"])
def test_only_regions_are_overwritten(photo_folder: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(photo_folder.parent)
    Path("boxes.csv").write_text("path,x1,y1,x2,y2\nval/limes/2.jpg,0,0,20,20\n")
    Embeddings(torch.ones(1, 2), ["a"], [None], [None], {}).save("e.parquet")
    before = Path(out).read_bytes() if Path(out).is_file() else b""
    done = transferkit("regions", "photos", "--extractor", "none", "--out", out, "--overwrite", "true")
    under = out == "boxes.csv/r.parquet"
    assert refused(done, "boxes.csv is not a folder" if under else f"{out} holds something else than regions")
    assert not before or Path(out).read_bytes() == before
