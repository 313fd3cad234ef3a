"""The images that ranges of a network in int8 are measured on, and what makes two such networks the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import space_of
from transferkit.embed.samples import chosen_of, quantization_of, read_rows, spread
from transferkit.errors import UserError
from transferkit.extractor import Extractor


def identity(extractor: Extractor, table: ImageTable) -> str | None:
    return quantization_of(extractor, table).of(extractor.weights_sha256(), None, "pooled").identity


def test_rows_are_evenly_spaced() -> None:
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8] and spread([3, 7], 5) == [3, 7]
    rows = spread(list(range(1000)), 64)
    assert len(set(rows)) == 64 and rows == sorted(rows) and rows[0] == 0 and rows[-1] >= 1000 - 1000 // 64 - 1


def test_training_images_are_preferred(table: ImageTable) -> None:
    assert chosen_of(table, 8).paths == tuple(table.paths[row] for row in spread(list(range(41)), 8))
    splits = tuple("train" if row >= 30 else "val" for row in range(41))
    assert chosen_of(replace(table, splits=splits)).paths == table.paths[30:]


def test_the_same_content_elsewhere_is_the_same_network(extractor: Extractor, images: Path, tmp_path: Path) -> None:
    first = identity(extractor, open_images(images))
    shutil.copytree(images, tmp_path / "copy")
    copied = open_images(tmp_path / "copy")
    assert identity(extractor, copied) == first
    copied.file(40).write_bytes(copied.file(39).read_bytes())
    assert identity(extractor, open_images(tmp_path / "copy")) != first
    copied.file(40).unlink()
    assert identity(extractor, copied) != first
    with torch.no_grad():
        next(extractor.backbone.parameters()).mul_(2)
    assert identity(extractor, open_images(images)) != first


def test_unreadable_images_are_left_out(extractor: Extractor, table: ImageTable) -> None:
    table.file(0).write_bytes(b"no image")
    rows, pixels = read_rows(extractor, table, [0, 5, 9])
    assert rows == [5, 9] and torch.equal(pixels[0], extractor.preprocessing.resize_crop(table.read(5)))
    with pytest.raises(UserError, match=r"none of 1 images of .* can be read; scan them to see why"):
        read_rows(extractor, table, [0])


def test_int8_is_a_space_of_its_own(extractor: Extractor, table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.extractor.engine.missing", lambda name: None)
    plain = space_of(extractor)
    quantization = quantization_of(extractor, table)
    mine = space_of(extractor.run_with("openvino", "int8", quantization))
    assert quantization_of(extractor, table).space == quantization.space == plain.sha256, "it depends on the precision"
    assert (mine.precision, mine.dtype, mine.engine) == ("int8", "int8", "openvino")
    assert mine.quantization == quantization.of(extractor.weights_sha256(), None, "pooled").identity
    assert mine.differences(plain)["precision"] == ("int8", "32") and mine.sha256 != plain.sha256
    assert "quantization" not in plain.compared() and type(mine).from_metadata(mine.to_metadata()) == mine
    others = quantization_of(extractor, table.select(range(20)))
    other = space_of(extractor.run_with("openvino", "int8", others))
    assert list(mine.differences(other)) == ["quantization"]
