"""Precision int8 from the command line: embed, predict, benchmark, export."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.extractor.examples import transformer
from tests.extractor.test_quantization import with_nncf
from tests.running import transferkit
from transferkit.data.embeddings import Embeddings
from transferkit.similarity import cosine_matrix


@pytest.fixture
def here(photo_folder: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/ and an extractor ``vit``, as working directory."""
    monkeypatch.chdir(photo_folder.parent)
    transformer("vit", "cls").save_pretrained("vit")
    return photo_folder.parent


@with_nncf
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_embed_measures_on_its_own_images_or_on_others() -> None:
    net = ["--extractor", "vit"]
    for more in ([], ["--precision", "int8"], ["--precision", "int8", "--int8_images", "photos/val"]):
        done = transferkit("embed", "photos", *net, *more, "--out", f"{len(more)}.parquet")
        assert done.status == 0, done.err
    plain, own, other = (Embeddings.load(f"{number}.parquet") for number in (0, 2, 4))
    assert own.metadata["precision"] == "int8" and own.metadata["engine"] == "openvino"
    assert cosine_matrix(plain.embedding, own.embedding).diag().min() > 0.98
    assert (
        own.metadata["quantization"] != other.metadata["quantization"]
        and own.metadata["space"] != other.metadata["space"]
    )
    done = transferkit("evaluate", "2.parquet", "--reference", "4.parquet", "--out", "evaluated")
    assert done.status == 2 and "differ in quantization" in done.err
    done = transferkit("evaluate", "2.parquet", "--reference", "0.parquet", "--out", "evaluated")
    assert done.status == 2 and "differ in precision" in done.err


@with_nncf
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_predict_and_an_export_of_a_run() -> None:
    fitted = ("fit", "photos", "--model.backbone", "vit", "--name", "eight", "--trainer.max_epochs", "1")
    assert transferkit(*fitted, "--trainer.accelerator", "cpu").status == 0
    for more in ([], ["--precision", "int8", "--int8_images", "photos/train"]):
        done = transferkit("predict", "photos/val", "--name", "eight", *more)
        assert done.status == 0, done.err
    metadata = json.loads(pq.read_schema("runs/eight/0/predict-2/embeddings.parquet").metadata[b"transferkit"])
    assert (metadata["precision"], metadata["engine"], metadata["dtype"]) == ("int8", "openvino", "int8")
    done = transferkit(
        "export", "best", "--name", "eight", "--out", "out", "--onnx", "--int8", "--max-drop", "100", "--json"
    )
    assert done.status == 0, done.err
    found = json.loads(done.out)["int8"]
    assert found["classifier"] == "the head" and found["measured_on"] == "12 images of val"
    assert found["calibration_images"] == 12 and found["kept_in_float"] == []


@with_nncf
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_benchmark_measures_on_each_dataset() -> None:
    one = {"extractor": "vit", "precision": "int8"}
    given = ["--extractors", json.dumps({"plain": "vit", "eight": one}), "--datasets", '{"photos": "photos"}', "--fast"]
    done = transferkit("benchmark", *given, "--json")
    assert done.status == 0, done.err
    plain, eight = json.loads(done.out)["cells"]
    assert eight["error"] is None and eight["features"] != plain["features"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["embed", "photos", "--extractor", "vit", "--precision", "int8", "--engine", "torch"],
            "PyTorch does not compute",
        ),
        (
            ["export", "vit", "--out", "x", "--int8"],
            "--int8 is for the files of --onnx and --openvino; add one of them",
        ),
        (
            ["export", "vit", "--out", "x", "--onnx", "--max_drop", "1"],
            "--int8_images and --max_drop are for files in int8",
        ),
        (["export", "vit", "--out", "x", "--onnx", "--int8", "--max-drop", "-1"], "--max_drop is -1; give points"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], line: str) -> None:
    done = transferkit(*arguments)
    assert done.status == 2 and line in done.err and len(done.err.splitlines()) == 1, done.err
    assert not Path("x").exists()


@with_nncf
@pytest.mark.usefixtures("here")
def test_images_for_ranges_are_asked_for() -> None:
    pair = ["photos/val/limes/0.jpg", "photos/val/apples/0.jpg"]
    done = transferkit("similarity", *pair, "--extractor", "vit", "--precision", "int8")
    assert done.status == 2 and "int8 needs images to measure ranges on; give --int8_images" in done.err
    done = transferkit("export", "vit", "--out", "x", "--onnx", "--int8")
    assert done.status == 2 and "give a folder or manifest with --int8_images" in done.err and not Path("x").exists()
