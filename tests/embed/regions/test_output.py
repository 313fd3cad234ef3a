"""Embeddings of boxes against the image's own, against mean colors, and against a moved object."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.embed.regions.drawn import Colors, folder, gradient
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.embed.regions import Box, embed_regions, save_regions
from transferkit.errors import UserError
from transferkit.extractor import Extractor


def test_upright_pixels(tmp_path: Path) -> None:
    """Boxes are in the picture as it is shown, after its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = gradient(100, 60)
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "a.png", exif=exif)
    for method in ("crop", "roi_align"):
        box = Box(1, "a.png", 0, 60, 60, 100)
        found = embed_regions(Extractor(Colors()), open_images(tmp_path), [box], method).embeddings.embedding[0]
        assert found.tolist() == pytest.approx(upright[60:].mean((0, 1)) / 255, abs=0.04)


@pytest.mark.parametrize("method", ["crop", "roi_align"])
def test_only_images_with_boxes_are_read_and_faults_are_named(tmp_path: Path, method: str) -> None:
    images = folder(tmp_path, a=gradient(40, 60), b=gradient(60, 40), c=gradient(50, 50))
    (tmp_path / "c.png").write_bytes(b"no picture")
    extractor = Extractor(Colors())
    good = [Box(9, "b.png", 0, 0, 10, 10, "y"), Box(4, "a.png", 5, 5, 50, 30, "x"), Box(2, "b.png", 3, 3, 20, 20)]
    result = embed_regions(extractor, images, good, method)  # c.png has no box
    assert [(box.path, box.number) for box in result.boxes] == [("a.png", 4), ("b.png", 2), ("b.png", 9)]
    assert result.embeddings.labels == ["x", None, "y"]

    bad = [Box(7, "a.png", 60, 0, 70, 10), Box(8, "c.png", 0, 0, 5, 5)]
    with pytest.raises(UserError) as error:
        embed_regions(extractor, images, [*good, *bad], method)
    assert "row 7: 'a.png': the box 60, 0, 70, 10 lies outside of its image of 60 x 40 pixels" in str(error.value)
    assert "row 8: 'c.png': not an image" in str(error.value)
    rest = embed_regions(extractor, images, [*good, *bad], method, on_error="skip")
    assert set(rest.broken) == {7, 8}
    torch.testing.assert_close(rest.embeddings.embedding, result.embeddings.embedding, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="2 boxes have no pixels"):
        embed_regions(extractor, images, bad, method, on_error="skip")


def test_the_file(tmp_path: Path) -> None:
    images = folder(tmp_path, a=gradient(40, 60))
    boxes = [Box(2, "a.png", -5, 0, 10, 10, "x"), Box(1, "a.png", 5, 5, 50.5, 30)]
    result = embed_regions(Extractor(Colors()), images, boxes, "roi_align")
    save_regions(result, tmp_path / "out.parquet")
    table = Embeddings.load(tmp_path / "out.parquet")
    assert torch.equal(table.embedding, result.embeddings.embedding) and list(table.labels) == [None, "x"]
    assert (table.metadata["pooling"], table.metadata["method"]) == ("roi_align", "roi_align")
    columns = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert [columns[name] for name in ("box", "x1", "y1", "x2", "y2")] == [[1, 2], [5, 0], [5, 0], [50.5, 10], [30, 10]]


@pytest.mark.parametrize("method", ["crop", "roi_align"])
def test_boxes_that_contradict_their_image_are_named_or_left_out(tmp_path: Path, method: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(40, 60)).save(tmp_path / "a.png", exif=exif)  # upright 40 x 60
    images = open_images(tmp_path)
    good = Box(1, "a.png", 5, 5, 25, 25, size=(60, 40))
    bad = [Box(2, "a.png", 5, 5, 25, 25, size=(40, 60)), Box(3, "a.png", 0.1, 0.2, 0.5, 0.6)]
    with pytest.raises(UserError, match=r"row 2: .* 60 x 40 pixels, it is upright 40 x 60: for the image before its EXIF") as error:  # fmt: skip  # noqa: E501
        embed_regions(Extractor(Colors()), images, [good, *bad], method)
    assert "row 3: 'a.png': the box 0.1, 0.2, 0.5, 0.6 looks like fractions" in str(error.value)
    rest = embed_regions(Extractor(Colors()), images, [good, *bad], method, on_error="skip")
    assert [box.number for box in rest.boxes] == [1] and set(rest.broken) == {2, 3}


def test_crops_go_through_the_engine_and_roi_align_through_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images, boxes = folder(tmp_path, a=gradient(40, 60)), [Box(1, "a.png", 2, 2, 20, 20)]
    asked: list[str] = []

    def program(graph: object, example: object, engine: str, precision: str, name: str) -> object:
        asked.append(engine)
        return graph

    monkeypatch.setattr("transferkit.extractor.forward.compile_graph", program)
    for method in ("crop", "roi_align"):
        extractor = Extractor(Colors()).run_with("openvino")
        found = embed_regions(extractor, images, boxes, method).embeddings  # type: ignore[arg-type]
        assert found.metadata["engine"] == {"crop": "openvino", "roi_align": "torch"}[method]
        assert extractor.engine == "openvino"
    assert asked == ["openvino"]
    assert caplog.messages == ["openvino takes one image size, roi_align needs any: PyTorch runs the network instead"]
