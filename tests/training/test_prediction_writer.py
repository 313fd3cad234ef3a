"""What test and predict write says in which precision it was computed."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import RESNET, fit
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.embed import space_of
from transferkit.embed.embedding_space import EmbeddingSpace
from transferkit.training.trainer import make_trainer

PRECISIONS = {
    "32-true": ("32", "float32"),
    "bf16-mixed": ("bf16-mixed", "bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"), [("test", "32-true"), ("test", "bf16-mixed"), ("predict", "bf16-mixed")]
)
def test_tables_say_their_precision(
    stage: str, precision: Any, photo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data, _ = fit(tmp_path / "fit", photo_folder, RESNET, epochs=1)
    data.features = {}
    run = tmp_path / "run"
    trainer = make_trainer(run, accelerator="cpu", precision=precision, enable_progress_bar=False)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "transferkit"):
        if stage == "test":
            trainer.test(module, datamodule=data, verbose=False)
        else:
            trainer.predict(module, datamodule=data, return_predictions=False)
    table = Embeddings.load(run / ("" if stage == "test" else "predict") / "embeddings.parquet")
    assert (table.metadata["precision"], table.metadata["dtype"]) == PRECISIONS[precision]
    assert table.metadata["device"] == "cpu" and table.metadata["engine"] == "torch"
    extractor = module.as_extractor()
    images = open_images(photo_folder)
    images = images.select(row for row, path in enumerate(images.paths) if path in set(table.paths))
    full = torch.cat(
        [extractor(extractor.preprocessing.resize_crop(images.read(row))[None]) for row in range(len(images))]
    )
    exact = torch.allclose(table.embedding, full, atol=1e-4, rtol=1e-4)
    assert exact is (precision == "32-true"), "the label is about real numbers"
    same = not EmbeddingSpace.from_metadata(table.metadata).differences(space_of(extractor))
    assert same is (precision == "32-true")
    warned = [record.message for record in caplog.records if "fitted on float32" in record.message]
    assert len(warned) == (precision != "32-true")
    assert all('bf16-mixed; add `precision="32-true"`' in line for line in warned)


def test_a_frozen_backbone_is_tested_on_cached_features(photo_folder: Path, tmp_path: Path) -> None:
    module, data, _ = fit(tmp_path / "fit", photo_folder, RESNET, epochs=1)
    run = tmp_path / "run"
    trainer = make_trainer(run, accelerator="cpu", enable_progress_bar=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert set(data.features) == {"val"}
    table = Embeddings.load(run / "embeddings.parquet")
    assert (table.metadata["precision"], table.metadata["dtype"]) == ("32", "float32")
    assert torch.equal(table.embedding, data.features["val"][0])
