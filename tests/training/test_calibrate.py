"""What a test calibrates on, and that the calibration goes with its classifier into the run, the export and predict."""

import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer

from tests.running import write_photos
from tests.tiny import RESNET, fit
from transferkit.data.datamodule import ImageDataModule
from transferkit.extractor import Extractor
from transferkit.extractor.calibration import JSON, TENSORS, Calibration
from transferkit.reports.answers import Answering
from transferkit.similarity.temperature import fit_temperature
from transferkit.training.calibrate import calibrate
from transferkit.training.module import TransferModule
from transferkit.training.trainer import make_trainer

COLOURS = {"apples": (120, 110, 100), "limes": (128, 110, 100), "plums": (120, 118, 100)}  # hard to tell apart
Trained = tuple[TransferModule, ImageDataModule, Path]


def trainer_of(run: Path, answering: Answering | None = None) -> Trainer:
    return make_trainer(run, accelerator="cpu", enable_progress_bar=False, answering=answering)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tested classifier of photos with train, val and test."""
    place = tmp_path_factory.mktemp("trained")
    write_photos(place / "photos", COLOURS, {"train": 5, "val": 6, "test": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(place / "cache"))
        module, data, _ = fit(place / "run", place / "photos", RESNET, epochs=2)
        trainer_of(place / "run").test(module, datamodule=data, verbose=False)
    return module, data, place / "run"


def test_the_temperature_is_fitted_on_val_alone(trained: Trained) -> None:
    module, data, run = trained
    extractor = module.as_extractor()
    val = data.tables["val"]
    logits = extractor.classify(extractor.embed([val.read(row) for row in range(len(val))]))
    assert module.calibration is not None and len(module.calibration) == 18
    assert module.calibration.temperature == pytest.approx(fit_temperature(logits, data.targets("val")), rel=1e-3)
    read = Calibration.load(run)
    assert read and read.summary() == module.calibration.summary() and read.class_names == list(COLOURS)
    assert read.layer == "layer3" and len(read.tensors["references"]) == 15
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    rows = extractor.classify(extractor.embed([str(Path(data.root) / path) for path in table["path"]]))
    assert table["calibrated_probability"].tolist() == pytest.approx(read.probability(rows).amax(1).tolist(), abs=1e-4)


def test_it_goes_with_its_checkpoint_and_export_and_with_no_other(trained: Trained, tmp_path: Path) -> None:
    module, _, run = trained
    best = Extractor.from_pretrained(run / "checkpoints" / "best.ckpt")
    assert (best.classifier_sha256() == module.as_extractor().classifier_sha256()) is (best.calibration is not None)
    mine = module.as_extractor()
    assert mine.calibration
    mine.save_pretrained(tmp_path / "export")
    assert {JSON, TENSORS} <= {path.name for path in (tmp_path / "export").iterdir()}
    assert (
        f"Divide the logits by {mine.calibration.temperature:.4g} before" in (tmp_path / "export/README.md").read_text()
    )
    exported = Extractor.from_pretrained(tmp_path / "export")
    assert exported.calibration
    assert exported.calibration.summary() == mine.calibration.summary()
    other = Extractor.from_pretrained(tmp_path / "export", preprocessing={"mean": [0.4, 0.4, 0.4]})
    assert other.calibration is None, "other pixels give other logits"
    with torch.no_grad():
        module.head.bias[0] += 1  # type: ignore[union-attr]
        assert module.as_extractor().calibration is None, "another head"
        module.head.bias[0] -= 1  # type: ignore[union-attr]


def test_predict_gives_sets_distances_and_abstains(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data, _ = trained
    trainer = trainer_of(tmp_path, Answering(coverage=0.8, reject=0.3, sets="aps"))
    with caplog.at_level(logging.INFO, "transferkit"):
        images = ImageDataModule(str(Path(data.root) / "test"), batch_size=4, num_workers=0)
        trainer.predict(module, datamodule=images, return_predictions=False)
    frame = pq.read_table(tmp_path / "predict" / "predictions.parquet").to_pandas()
    added = ["calibrated_probability", "set", "set_size", "answer", "knn_distance", "mahalanobis_distance"]
    assert list(frame.columns)[8:15] == [*added, "unlike_train"]
    assert (frame["set_size"] >= 1).all() and all(frame["prediction"][row] in frame["set"][row] for row in range(9))
    extractor = module.as_extractor()
    inner = extractor.forward(layer="layer3")
    pixels = [extractor.preprocessing.resize_crop(images.tables["predict"].read(row)) for row in range(9)]
    assert extractor.calibration is not None
    distance = extractor.calibration.distance(inner(torch.stack(pixels)), "mahalanobis")
    assert frame["mahalanobis_distance"].tolist() == pytest.approx(distance.tolist(), rel=1e-3)
    assert any("calibrated on 18 images of val" in record.message for record in caplog.records)


@pytest.mark.parametrize("lack", ["no val", "val without labels", "fitted on val", "no train", "unreadable val"])
def test_data_that_cannot_be_calibrated_on(
    lack: str, trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data, _ = trained
    splits = {"test": 3} if lack == "no val" else {"val": 3, "test": 3}
    write_photos(tmp_path / "other", COLOURS, splits | ({"train": 3} if lack == "fitted on val" else {}))
    other = ImageDataModule(str(tmp_path / "other"), num_workers=0)
    module.connect(other, "test")
    module.connected = None
    fitted_on = module.fitted_on
    if lack == "fitted on val":
        other.tables["val"] = data.tables["train"]
    if lack == "val without labels":
        object.__setattr__(other.tables["val"], "labels", (None,) * 9)
    if lack == "unreadable val":
        for path in (tmp_path / "other" / "val").rglob("*.*"):
            path.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "transferkit"):
        found = calibrate(module, other)
    assert module.fitted_on == fitted_on
    if lack == "no train":
        assert found and not found.knows_train and not caplog.records
        return
    assert found is None
    (line,) = {record.message for record in caplog.records if record.message.startswith("not calibrated: ")}
    assert ";" in line and "\n" not in line
