"""From files to embeddings: the same rows as on a CPU, in order, whatever overlaps with what."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.gpu.networks import NETWORKS, difference
from transferkit.data.image_table import open_images
from transferkit.embed.in_memory import embed
from transferkit.embed.regions.align import embed_aligned
from transferkit.embed.regions.boxes import Box
from transferkit.embed.stream import batch_ranges, stream_table
from transferkit.embed.transfer import Transfer
from transferkit.extractor.cuda_graph import Recorded

pytestmark = pytest.mark.gpu


@pytest.fixture
def photos(photo_folder: Path) -> Path:
    """Some more of the photos, and a broken one."""
    for number in range(6, 20):
        shutil.copy(photo_folder / "train/limes/0.jpg", photo_folder / f"train/limes/{number}.jpg")
    broken = photo_folder / "train/apples/4.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    return photo_folder


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_table_in_order_without_the_broken(name: str, photos: Path, device: torch.device) -> None:
    extractor, table = NETWORKS[name](), open_images(photos)
    expected = embed(table, extractor, batch_size=4, on_error="skip")
    extractor.to(device)
    found = [embed(table, extractor, batch_size=size, on_error="skip") for size in (4, 4, 16)]
    for each in found:
        assert each.paths == expected.paths and "train/apples/4.jpg" in each.metadata["broken"]
        assert difference(each.embedding, expected.embedding) <= 1e-4
        assert each.metadata["device"] == device.type
    assert torch.equal(found[0].embedding, found[1].embedding), "the same command, the same bits"


def test_any_number_of_threads_gives_the_same_bits(photos: Path, device: torch.device) -> None:
    extractor, table = NETWORKS["resnet18"]().to(device), open_images(photos)
    ranges = batch_ranges(len(table), 4)
    results = []
    for workers in (1, 8):
        batches = list(stream_table(extractor, table, ranges, workers=workers, show=False))
        assert [row for batch in batches for row in (*batch.rows, *batch.broken)].sort() == list(range(37)).sort()
        results.append(torch.cat([batch.embedding for batch in batches]))
    assert torch.equal(*results)


def test_long_tables_are_one_recorded_pass(photos: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = Recorded.__call__
    monkeypatch.setattr(Recorded, "__call__", lambda self, given: calls.append(len(given)) or run(self, given))
    extractor, table = NETWORKS["vit"]().to(cuda), open_images(photos)
    embed(table, extractor, batch_size=4, on_error="skip")
    assert calls == [4] * (len(table) // 4)


def test_transfers_of_many_batches_keep_their_contents(device: torch.device) -> None:
    transfer, taken = Transfer(device), []
    for number in range(50):
        images = [torch.full((3, 32, 32), (number + row) % 256, dtype=torch.uint8) for row in range(16)]
        pixels = transfer.send(images)
        assert pixels.device.type == device.type
        taken.append(transfer.fetch(pixels.float().mean((1, 2, 3)) + 0))
    for number, take in enumerate(taken):
        assert take().tolist() == [(number + row) % 256 for row in range(16)]


def test_regions_of_an_image(photos: Path, device: torch.device) -> None:
    extractor, table = NETWORKS["resnet18"](), open_images(photos)
    boxes = [Box(1, "train/apples/0.jpg", 2, 3, 20, 20), Box(2, "train/limes/0.jpg", 0, 0, 40, 32)]
    expected = torch.cat([batch.embedding for batch in embed_aligned(extractor, table, boxes, {})])
    found = torch.cat([batch.embedding for batch in embed_aligned(extractor.to(device), table, boxes, {})])
    assert difference(found, expected) <= 1e-4


def test_lists_of_images(photos: Path, device: torch.device) -> None:
    extractor = NETWORKS["vit"]()
    files = sorted(map(str, (photos / "val").rglob("*.*g")))
    expected = extractor.embed(files, batch_size=5)
    found = extractor.to(device).embed(files, batch_size=5)
    assert found.device.type == "cpu" and difference(found, expected) <= 1e-4
