"""``transferkit predict``: its tables, what it takes for a classifier, and where it writes."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision import models
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from tests.running import refused, transferkit, write_photos
from tests.tiny import RESNET, options

NAMES = ["apples, red", 'limes "green"', "pears\nand more", "plums", "quinces", "=1+1"]
COLOURS = {name: (40 * i, 250 - 40 * i, 90) for i, name in enumerate(NAMES)}
CLASSES = sorted(NAMES)
SMALL = [*options("model", RESNET), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
FOLDER = "runs/tiny/0/predict"
NET = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of six classes with odd names, a run, its export, and a probe of weights of their own."""
    place = tmp_path_factory.mktemp("trained")
    write_photos(place / "photos", COLOURS, {"train": 4, "val": 2})
    torch.manual_seed(3)
    save_file(models.shufflenet_v2_x0_5(num_classes=2).state_dict(), place / "weights.safetensors")
    with chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(place / "cache"))
        for command in (
            ["fit", "photos", *SMALL, "--trainer.max_epochs", "2", "--name", "tiny"],
            ["export", "best", "--out", "exported"],
            ["probe", "photos", "--extractor", NET, "--weights", "weights.safetensors", "--out", "probe", "--fast"],
        ):
            done = transferkit(*command)
            assert done.status == 0, done.err
    return place


@pytest.fixture(autouse=True)
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it to work in."""
    place = tmp_path / "work"
    shutil.copytree(trained, place, copy_function=os.link)  # nothing is written in place
    monkeypatch.chdir(place)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(place / "cache"))
    yield place
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


def table(folder: str) -> Any:
    return pq.read_table(f"{folder}/predictions.parquet").to_pandas()


def by_class(frame: Any) -> np.ndarray[Any, Any]:
    """All probabilities, (N, classes)."""
    values: np.ndarray[Any, Any] = frame[[f"probability/{name}" for name in CLASSES]].to_numpy()
    return values


def pixels(paths: list[str], size: int, crop: int) -> torch.Tensor:
    """Images as torchvision's own reference for ImageNet prepares them."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = [v2.Resize(size), v2.CenterCrop(crop), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    images = (decode_image(f"photos/{path}", ImageReadMode.RGB) for path in paths)
    return torch.stack([v2.Compose(steps)(image) for image in images])


@torch.inference_mode()
def test_all_probabilities_are_those_of_the_exported_torchvision_model() -> None:
    assert transferkit("predict", "photos").status == 0
    frame = table(FOLDER)
    model = models.resnet18(num_classes=6).eval()
    model.load_state_dict(load_file("exported/model.safetensors"))
    images = (decode_image(f"photos/{path}", ImageReadMode.RGB) for path in frame["path"])
    resize = v2.Resize((32, 32))
    small = torch.stack([resize(image) for image in images]).float() / 255
    normalized = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(small)
    np.testing.assert_allclose(by_class(frame), model(normalized).softmax(1).numpy(), atol=1e-2)  # as below


def test_the_tables() -> None:
    done = transferkit("predict", "photos")
    assert done.status == 0, done.err
    frame = table(FOLDER)
    ranked = [
        "prediction",
        "probability",
        *(f"{what}_{k}" for k in range(2, 6) for what in ("prediction", "probability")),
    ]
    assert list(frame) == ["path", "label", *ranked, *(f"probability/{name}" for name in CLASSES)]
    shares = by_class(frame)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    order = np.argsort(-shares, axis=1, kind="stable")
    for rank, end in enumerate(["", "_2", "_3", "_4", "_5"]):
        assert frame[f"prediction{end}"].tolist() == [CLASSES[row[rank]] for row in order]
        assert frame[f"probability{end}"].tolist() == shares[range(len(frame)), order[:, rank]].tolist()
    with Path(FOLDER, "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", *ranked]
    for row, wanted in zip(rows, frame[header].itertuples(index=False), strict=True):
        cells = [
            np.float32(cell) if isinstance(value, float) else cell for cell, value in zip(row, wanted, strict=True)
        ]
        assert cells == list(wanted)
    again = pd.read_csv(Path(FOLDER, "predictions.csv"), keep_default_na=False)
    assert again["prediction"].tolist() == frame["prediction"].tolist() and len(again) == 36
    assert f"predictions: {FOLDER}/predictions.parquet and predictions.csv" in done.err


def test_odd_names_of_files_survive_the_csv(work: Path) -> None:
    names = ["a,b.jpg", 'q"x.jpg', "line\nbreak.jpg", "cr\rx.jpg", "=HYPERLINK(1).jpg", "猫.jpg", " space.jpg"]
    for name in names:
        (work / "odd").mkdir(exist_ok=True)
        shutil.copy("photos/train/plums/0.jpg", work / "odd" / name)
    done = transferkit("predict", "odd", "--json")
    assert done.status == 0, done.err
    with Path(FOLDER, "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (
        [row["path"] for row in rows] == sorted(names) == [row["path"] for row in json.loads(done.out)["predictions"]]
    )
    assert {row["label"] for row in rows} == {""}


@pytest.mark.parametrize(("asked", "count"), [("1", 1), ("3", 3), ("100", 6)])
def test_the_most_probable_classes_of_each_image(asked: str, count: int) -> None:
    done = transferkit("predict", "photos/val/plums", "--top_k", asked, "--json")
    content, frame = json.loads(done.out), table(FOLDER)
    assert content["run"] == "runs/tiny/0" and "predict/predictions.csv" in content["written"]
    for row, share in zip(content["predictions"], by_class(frame), strict=True):
        wanted = sorted(zip(share.tolist(), CLASSES, strict=True), key=lambda pair: -pair[0])[:count]
        assert [(top["probability"], top["class"]) for top in row["top"]] == wanted
    assert f"prediction_{count}" in frame or count == 1
    assert f"prediction_{count + 1}" not in frame


def test_a_number_of_classes_that_there_cannot_be() -> None:
    assert refused(transferkit("predict", "photos", "--top_k", "0"), "--top_k is 0; give 1 or more")
    assert refused(transferkit("test", "photos", "--top_k", "2"), "unknown option --top_k")


@pytest.mark.slow
def test_other_images_than_those_of_the_run(work: Path) -> None:
    """What the run's config says of its own images is not for a folder or an image given now; a typed option is."""
    config = work / "runs/tiny/0/config.yaml"
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    rows = [f"{path.relative_to(work / 'photos')},plums\n" for path in sorted((work / "photos").rglob("plums/*.*"))]
    Path("lists").mkdir()
    Path("lists/a.csv").write_text("path,label\n" + "".join(rows), encoding="utf-8")
    Path("lists/drop.csv").write_text("path\nplums/4.jpg\nplums/0.jpg\n", encoding="utf-8")
    content["data"] |= {
        "root": "lists/a.csv",
        "image_root": "photos",
        "exclude": "lists/drop.csv",
        "classes": ["plums"],
    }
    config.unlink()  # a link to that of the fixture
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    run = ("--ckpt_path", "runs/tiny/0")
    for given in ("photos/val/plums", "photos/val/plums/0.jpg", "lists/a.csv"):
        done = transferkit("predict", given, *run)
        assert done.status == 0, done.err
    assert [len(table(f"{FOLDER}{number}")) for number in ("", "-2", "-3")] == [2, 1, 6]
    done = transferkit("test", "photos/val", "--name", "tiny", "--json")
    assert done.status == 0 and len(table("runs/tiny/0")) == 12, done.err
    html = Path("runs/tiny/0/report.html").read_text(encoding="utf-8")
    assert html.count("<image ") > 0 and "is for a manifest" not in html
    typed = transferkit("predict", "photos/val", "--name", "tiny", "--data.image_root", "photos")
    assert refused(typed, "--data.image_root is for a manifest")


@pytest.mark.slow
def test_a_second_predict_leaves_the_first() -> None:
    first = transferkit("predict", "photos/val/plums")
    before = {path: path.read_bytes() for path in Path(FOLDER).iterdir()}
    second = transferkit("predict", "photos/train/plums")
    third = transferkit("predict", "photos/train/plums")
    assert (first.status, second.status, third.status) == (0, 0, 0), second.err
    assert {path: path.read_bytes() for path in Path(FOLDER).iterdir()} == before
    assert f"predictions: {FOLDER}-2/predictions.parquet" in second.err and f"{FOLDER}-3/" in third.err
    names = {path.name for path in Path(f"{FOLDER}-2").iterdir()}
    assert names == {"predictions.parquet", "predictions.csv", "embeddings.parquet"}


def test_an_exported_directory_predicts_as_its_checkpoint() -> None:
    assert transferkit("predict", "photos").status == 0
    done = transferkit("predict", "photos", "--ckpt_path", "exported", "--data.num_workers", "0")
    assert done.status == 0 and done.out.splitlines()[-1] == "run runs/predict/0", done.err
    ours, theirs = table(FOLDER), table("runs/predict/0/predict")
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(by_class(ours), by_class(theirs), atol=1e-5)


@pytest.mark.slow
def test_a_config_may_name_what_classifies() -> None:
    """Random weights are those that were probed."""
    probed = transferkit("probe", "photos", "--extractor", NET, "--weights", "none", "--out", "random", "--fast")
    assert probed.status == 0, probed.err
    model, data = {"backbone": NET, "weights": "none"}, {"root": "photos/val"}
    Path("c.yaml").write_text(
        yaml.safe_dump({"ckpt_path": "random/classifier.safetensors", "model": model, "data": data})
    )
    done = transferkit("predict", "--config", "c.yaml")
    assert done.status == 0 and done.out.splitlines()[-1] == "run runs/c/0", done.err


@pytest.mark.parametrize("verb", [pytest.param("validate", marks=pytest.mark.slow), "test"])
def test_an_exported_directory_is_measured_as_its_checkpoint(verb: str) -> None:
    ours, theirs = (
        json.loads(transferkit(verb, "photos", "--json", "--ckpt_path", place).out)["metrics"]
        for place in ("best", "exported")
    )
    assert {name: value for name, value in ours.items() if "loss" not in name} == pytest.approx(
        {name: value for name, value in theirs.items() if "loss" not in name}, abs=1e-4
    )


@pytest.mark.parametrize("place", ["probe/classifier.safetensors", "probe"])
@torch.inference_mode()
def test_a_probes_classifier(place: str) -> None:
    given = ["--model.backbone", NET, "--model.weights", "weights.safetensors", "--data.num_workers", "0"]
    done = transferkit("predict", "photos/val", "--ckpt_path", place, *given)
    assert done.status == 0, done.err
    frame = table("runs/predict/0/predict")
    model = models.shufflenet_v2_x0_5(num_classes=2).eval()
    model.load_state_dict(load_file("weights.safetensors"))
    model.fc = torch.nn.Identity()  # type: ignore[assignment]
    embedding = model(pixels([f"val/{path}" for path in frame["path"]], 256, 224))
    with safe_open("probe/classifier.safetensors", "pt") as file:
        known = json.loads(file.metadata()["transferkit"])
        weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    rows = torch.nn.functional.normalize(embedding) if known["standardisation"] == "l2" else embedding
    wanted = ((rows @ weight.T + bias) / known["temperature"]).softmax(1)
    assert frame["prediction"].tolist() == [CLASSES[best] for best in wanted.argmax(1).tolist()]
    np.testing.assert_allclose(by_class(frame), wanted.numpy(), atol=3e-2)  # resizers differ by a grey level


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--ckpt_path", "probe"], "is only a classifier; add the probed extractor: --model.backbone EXTRACTOR"),
        (
            ["--ckpt_path", "probe", "--model.backbone", "resnet18", "--model.weights", "none"],
            "was fitted on embeddings",
        ),
        (
            ["--ckpt_path", "exported", "--model.backbone", "resnet18"],
            "backbone is decided by the --ckpt_path exported",
        ),
        (["--ckpt_path", "photos"], "photos is not an exported directory or classifier .it lacks transferkit.json"),
        (["--ckpt_path", "runs/tiny"], "runs/tiny holds runs, .*; give the newest, runs/tiny/0, or --name tiny"),
        (["--ckpt_path", "gone.safetensors"], "gone.safetensors is not an exported .*there is no such file"),
        (["--ckpt_path", "bare"], "bare has no classifier; give a checkpoint of fit, or a probe's classifier"),
    ],
)
def test_what_cannot_classify(arguments: list[str], pattern: str) -> None:
    if "bare" in arguments:
        assert transferkit("export", NET, "--weights", "none", "--out", "bare").status == 0
    assert refused(transferkit("predict", "photos", *arguments), pattern)
    assert not Path("runs/predict").exists()


def test_a_fit_cannot_resume_from_them() -> None:
    done = transferkit("fit", "photos", "--ckpt_path", "exported")
    assert refused(done, "exported is not a checkpoint to resume; start a new fit with --model.backbone exported")


def test_a_calibrated_classifier_says_when_to_trust_it(caplog: pytest.LogCaptureFixture) -> None:
    assert transferkit("predict", "photos", "--name", "tiny").status == 0
    assert "not calibrated: test this classifier on data with a val split" in caplog.text
    before = table(FOLDER)
    assert not {"calibrated_probability", "unlike_train"} & set(before)
    assert transferkit("test", "--name", "tiny").status == 0
    done = transferkit("predict", "photos", "--name", "tiny", "--coverage", "0.5", "--reject", "0.05", "--json")
    assert done.status == 0, done.err
    assert "this takes at least 113 images of val, there are 12" in caplog.text
    after = table(f"{FOLDER}-2")
    assert before.equals(after[before.columns]), "the other columns stay as they are"
    told = json.loads(done.out)["predictions"]
    assert [row["set"] for row in told] == [list(names) for names in after["set"]]
    assert {row["answer"] for row in told} == {None}
    with Path(f"{FOLDER}-2/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(row["set"]) for row in rows] == [row["set"] for row in told]
    assert {row["answer"] for row in rows} == {""}
    shown = transferkit("predict", "photos", "--name", "tiny", "--reject", "0.05").out.splitlines()[0]
    path, name, probability = (after[column][0] for column in ("path", "prediction", "calibrated_probability"))
    assert shown.startswith(f"{path} {name} {probability:.3f} (not answered")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--coverage", "0.9"],
            "--coverage needs a calibrated classifier; test this one first, on data with a val split",
        ),
        (["--reject", "0.05"], "--reject needs a calibrated classifier"),
        (["--coverage", "1.5"], "--coverage is 1.5; give a number between 0 and 1"),
        (["--false_alarm", "0"], "--false_alarm is 0.0; give a number between 0 and 1"),
        (["--sets", "raps"], "--sets"),
        (["--unlike", "cosine"], "--unlike"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line(options: list[str], line: str) -> None:
    done = transferkit("predict", "photos", "--name", "tiny", *options)
    assert done.status == 2 and len(done.err.splitlines()) == 1 and line in done.err, done.err


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["frozen", "full"])
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_another_engine_predicts_the_same(regime: str, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    fitted = ("fit", "photos", *SMALL, "--model.regime", regime, "--trainer.max_epochs", "1", "--name", "other")
    for command in (fitted, ("predict", "photos/val", "--name", "other")):
        assert transferkit(*command).status == 0
    assert transferkit("predict", "photos/val", "--name", "other", "--engine", engine).status == 0
    plain, other = by_class(table("runs/other/0/predict")), by_class(table("runs/other/0/predict-2"))
    np.testing.assert_allclose(other, plain, atol=1e-5)
    schema = pq.read_schema("runs/other/0/predict-2/embeddings.parquet")
    assert json.loads(schema.metadata[b"transferkit"])["engine"] == engine
    uncached = ("--engine", engine, "--data.cache", "off")
    assert transferkit("predict", "photos/val", "--name", "other", *uncached).status == 0
    assert "PyTorch runs the network" in caplog.text
