"""The projector's files as TensorBoard's own plugin reads and serves them."""

import io
import json
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from tests.tiny import RESNET, fit
from transferkit import similarity
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.images.decoding import ImageError
from transferkit.reports.projector import CONFIG, SIDE, fill_projector, thumbnail, thumbnails
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer


def table(rows: int = 7) -> Embeddings:
    paths = [f"a/{row:03d}.jpg" for row in range(rows)]
    labels = ["ant" if row % 2 else None for row in range(rows)]
    return Embeddings(torch.randn(rows, 5), paths, labels, ["test"] * rows, {})


def grey(path: str) -> Tensor:
    """An image whose brightness is its number; number 3 is broken."""
    number = int(Path(path).stem)
    if number == 3:
        raise ImageError("truncated", "truncated JPEG")
    return torch.full((3, 20, 30), 10 + number, dtype=torch.uint8)


def served(folder: Path, route: str, **query: str) -> bytes:
    """What TensorBoard's plugin answers for a log directory."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    plugin = ProjectorPlugin(TBContext(logdir=str(folder), multiplexer=multiplexer, data_provider=provider))
    response = Client(plugin.get_plugin_apps()[route]).get(f"/?{urlencode(query)}")
    assert response.status_code == 200, response.data
    return response.data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with events, below the log directory."""
    with SummaryWriter(tmp_path / "runs" / "r") as writer:
        writer.add_scalar("a", 1)
    return tmp_path / "runs" / "r"


def test_a_thumbnail_is_one_of_itself() -> None:
    pixels = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8)
    assert torch.equal(thumbnail(thumbnail(pixels)), thumbnail(pixels))


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_an_image_is_decoded_once_for_test_and_its_thumbnail(
    cache: str, photo_folder: Path, tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    fit(tmp_path / "run", photo_folder, RESNET, epochs=1)
    reads.clear()
    test = ImageDataModule(str(photo_folder.rename(tmp_path / "moved") / "val"), num_workers=0, cache=cache)
    trainer = make_trainer(tmp_path / "run", accelerator="cpu", enable_progress_bar=False)
    trainer.test(TransferModule(str(tmp_path / "run/checkpoints/best.ckpt")), datamodule=test, verbose=False)
    assert len(reads) == 12
    assert set(reads.values()) == ({1} if cache == "auto" else {2})  # checked first, where nothing is cached
    sheet = np.asarray(Image.open(tmp_path / "run/projector/test/sprite.png"))
    first = test.tables["test"].read(0)
    assert np.array_equal(sheet[:SIDE, :SIDE], thumbnail(first).permute(1, 2, 0).numpy())


def test_tensorboard_serves_rows_labels_and_thumbnails(run: Path) -> None:
    rows = table()
    assert fill_projector(run, "test", rows, grey) == 7
    assert json.loads(served(run.parent, "/runs")) == ["r"]
    (entry,) = json.loads(served(run.parent, "/info", run="r"))["embeddings"]
    assert (entry["tensorName"], entry["tensorShape"]) == ("test", [7, 5])
    assert entry["sprite"]["singleImageDim"] == [SIDE, SIDE]
    ask = {"run": "r", "name": "test"}
    tensor = np.frombuffer(served(run.parent, "/tensor", **ask), np.float32).reshape(7, 5)
    np.testing.assert_allclose(tensor, rows.embedding.numpy(), rtol=1e-6)
    lines = served(run.parent, "/metadata", **ask).decode().splitlines()
    assert lines[:3] == ["label\tpath\tsplit", "–\ta/000.jpg\ttest", "ant\ta/001.jpg\ttest"]
    sheet = np.array(Image.open(io.BytesIO(served(run.parent, "/sprite_image", **ask))))
    assert sheet.shape == (3 * SIDE, 3 * SIDE, 3)  # square, the cells in the order of the rows
    assert sheet[::SIDE, ::SIDE, 0].flatten().tolist() == [10, 11, 12, 0, 14, 15, 16, 0, 0]
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("values", [torch.zeros(2, 3), torch.full((1, 1), 0.1), torch.tensor([[1e-30, -3e30]])])
def test_any_finite_values(run: Path, values: Tensor) -> None:
    rows = Embeddings(values, ["0.jpg", "1.jpg"][: len(values)], [None, None], [None, None], {})
    rows = rows.select(range(len(values)))
    fill_projector(run, "test", rows, grey)
    tensor = np.frombuffer(served(run.parent, "/tensor", run="r", name="test"), np.float32)
    np.testing.assert_allclose(tensor.reshape(values.shape), values.numpy(), rtol=1e-6)


def test_hostile_names_keep_one_line_a_row(run: Path) -> None:
    nasty = "tab\t, line\n, return\r, nul\0, escape\x1b[31m, sep\u2028, next\x85"
    rows = Embeddings(torch.randn(3, 2), ["0.jpg", nasty, "2.jpg"], [nasty, "", None], [None] * 3, {})
    fill_projector(run, "test", rows, lambda path: grey("5.jpg"))
    lines = served(run.parent, "/metadata", run="r", name="test").decode().split("\n")
    assert len(lines) == 5 and lines[-1] == ""
    assert all(line.count("\t") == 2 and line.strip() == line for line in lines[:-1])
    assert all(line.replace("\t", "").isprintable() for line in lines)


def test_capped_to_drawn_rows_in_order(run: Path) -> None:
    assert fill_projector(run, "test", table(40), grey, most=6) == 6
    paths = [line.split("\t")[1] for line in (run / "projector/test/metadata.tsv").read_text().splitlines()[1:]]
    assert len(set(paths)) == 6 and paths == sorted(paths)
    assert fill_projector(run, "again", table(40), grey, most=6) == 6
    assert (run / "projector/again/metadata.tsv").read_text().splitlines()[1].split("\t")[1] == paths[0]


def test_other_tabs_stay_and_the_same_is_replaced(run: Path) -> None:
    for name, rows in (("val", 4), ("test", 5), ("val", 3)):
        fill_projector(run, name, table(rows), grey)
    entries = json.loads(served(run.parent, "/info", run="r"))["embeddings"]
    assert {entry["tensorName"]: entry["tensorShape"] for entry in entries} == {"val": [3, 5], "test": [5, 5]}
    (run / CONFIG).write_bytes(b"\xff{ no config")
    fill_projector(run, "test", table(2), grey)
    assert len(json.loads(served(run.parent, "/info", run="r"))["embeddings"]) == 1


def test_test_fills_it_for_the_run(photo_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    module, data, trainer = fit(run, photo_folder, RESNET, epochs=1)
    trainer.test(module, datamodule=data, verbose=False)
    rows = Embeddings.load(run / "embeddings.parquet")
    assert json.loads((run / "similarity.json").read_text()) == pytest.approx(
        similarity.evaluate(rows.embedding, rows.labels).overall
    )
    ask = {"run": "r", "name": "test"}
    tensor = np.frombuffer(served(run.parent, "/tensor", **ask), np.float32).reshape(len(rows), -1)
    np.testing.assert_allclose(tensor, rows.embedding.numpy(), rtol=1e-6)
    lines = served(run.parent, "/metadata", **ask).decode().splitlines()[1:]
    assert [line.split("\t")[1] for line in lines] == rows.paths
    sheet = np.array(Image.open(io.BytesIO(served(run.parent, "/sprite_image", **ask))))
    cells = [sheet[n // 4 * SIDE :, n % 4 * SIDE :][:SIDE, :SIDE].mean((0, 1)) for n in range(len(rows))]
    assert ["apples" if red > green else "limes" for red, green, _ in cells] == rows.labels  # by their colour


def test_a_thumbnail_is_the_middle_square() -> None:
    pixels = torch.zeros(3, 64, 128, dtype=torch.uint8)
    pixels[:, :, 32:96] = 200
    wide, tall = thumbnails(table(2), lambda path: pixels if "000" in path else pixels.transpose(1, 2))
    assert wide.shape == tall.shape == (3, SIDE, SIDE)
    assert wide.unique().tolist() == tall.unique().tolist() == [200]
