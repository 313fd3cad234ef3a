"""What embeds images for predictions."""

from pathlib import Path

import pytest

from tests.extractor.examples import transformer
from transferkit.data.image_table import open_images
from transferkit.training.predicting import Predicting


def test_what_is_usual() -> None:
    assert Predicting().is_usual and Predicting("torch").is_usual and not Predicting("auto").is_usual
    assert not Predicting().is_wanted and not Predicting("auto").is_wanted and Predicting("onnx").is_wanted
    assert Predicting(precision="bf16").is_wanted and Predicting(precision="int8").is_wanted


def test_int8_takes_openvino_and_the_images(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.extractor.engine.missing", lambda name: None)
    extractor, table = transformer("vit", "cls"), open_images(photo_folder)
    found = Predicting(precision="int8").chosen(extractor, table)
    assert (found.engine, extractor.engine, extractor.precision) == ("openvino", "openvino", "int8")
    others = Predicting(precision="int8", int8_images=str(photo_folder / "train")).chosen(extractor, table)
    assert found.quantization and others.quantization and others.quantization.samples != found.quantization.samples
    assert found.run(transformer("vit", "cls")).quantization == found.quantization
    plain = Predicting().chosen(extractor, table)
    assert (plain.engine, plain.precision, plain.quantization) == ("torch", "32", None) and extractor.precision == "32"
