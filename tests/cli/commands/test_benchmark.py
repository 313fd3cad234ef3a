"""``transferkit benchmark`` from the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tests.running import transferkit

CONFIG = {
    "extractors": {
        "random": {"extractor": "shufflenet_v2_x0_5", "weights": "none"},
        "pretrained": "resnet18",
    },
    "datasets": {"photos": "photos"},
    "out": "out",
    "fast": True,
}


@pytest.fixture(autouse=True)
def place(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(photo_folder.parent)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(photo_folder.parent / "cache"))
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return photo_folder.parent


def test_a_table_of_what_could_be_measured(place: Path) -> None:
    done = transferkit("benchmark", "--config", "mine.yaml")
    assert done.status == 0
    assert "random" in done.out and "linear" in done.out
    assert "1 of 2 cells could not be measured" in done.err
    assert "cannot be reached" in (place / "out/benchmark.md").read_text()
    assert "written: out/benchmark.md, out/benchmark.csv, out/benchmark.png, out/benchmark.tex" in done.err
    assert "warning: random on photos: " in done.err, "the warnings of a probe are only in the table"
    again = transferkit("benchmark", "--config", "mine.yaml", "--json")
    cells = json.loads(again.out)["cells"]
    assert [cell["approach"] for cell in cells] == ["random", "pretrained"]
    assert cells[0]["top1"] is not None and cells[1]["top1"] is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"extractors": {"x": {"extractor": "resnet18", "wieghts": "none"}}},
            "'x' has the unknown option 'wieghts'; it takes extractor, weights",
        ),
        ({"extractors": {"x": {"weights": "none"}}}, "'x' lacks 'extractor'"),
        (
            {"extractors": {"x": {"extractor": "resnet18", "weights": "none", "engine": "tvm"}}},
            "engine: tvm is unknown; give one of torch, openvino, onnx, auto",
        ),
        ({"extractors": {"x": {"extractor": 18}}}, "extractor of 'x' is 18; give a string"),
        (
            {"extractors": {"x": {"extractor": "resnet18", "preprocessing": 160}}},
            "preprocessing of 'x' is 160; give fields and values, as {image_size: 160}",
        ),
        ({"datasets": {"x": {"image_root": "photos"}}}, "datasets: 'x' lacks 'images'"),
        (
            {"datasets": {"x": {"images": "photos", "root": "y"}}},
            "'x' has the unknown option 'root'; it takes images, image_root",
        ),
        ({"datasets": {"good": "photos", "x": "photoz"}}, "no such folder or file for 'x': 'photoz'; check the path"),
        (
            {"datasets": {"x": {"images": "photos", "multilabel": 3}}},
            "multilabel of 'x' is 3; give true or false",
        ),
        ({"seeds": "0,x"}, "--seeds is '0,x'; give numbers with commas between them"),
        ({"seeds": [1, 1]}, "give each seed once"),
        ({"seeds": "-1"}, "--seeds is -1; give a number from 0"),
        ({"extractors": {"x": {"extractor": "resnet18", "seed": 1}}}, "give it with weights: none"),
        (
            {"extractors": {"x": {"extractor": "resnet18", "weights": "none", "seed": "a"}}},
            "seed of 'x' is 'a'; give a number from 0 up",
        ),
        ({"datasets": {"x": {"images": None}}}, "images of 'x' is None; give a string"),
        ({"extractors": None}, "no extractors to benchmark"),
        ({"datasets": {}}, "no datasets to benchmark"),
        ({"datasets": ["photos"]}, "--datasets is"),
        ({"on_error": "maybe"}, "--on_error is 'maybe'; give 'fail', 'skip'"),
        ({"ouf": "x"}, "ouf"),
    ],
)
def test_a_config_that_cannot_be_used(change: dict[str, object], line: str, place: Path) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | change))
    done = transferkit("benchmark", "--config", "mine.yaml")
    assert done.status == 2, done.err
    assert line in done.err and done.err.count("\n") == 1
    assert not (place / "out").exists()


def test_preprocessing_and_folders_of_manifests(place: Path) -> None:
    """Each approach sees what fit would show it with the same --model.preprocessing, and probe with --image_root."""
    Path("lists").mkdir()
    rows = [f"{path.relative_to(place / 'photos')},{path.parent.name}" for path in (place / "photos").rglob("*.*")]
    Path("lists/some.csv").write_text("\n".join(["path,label", *sorted(rows)]))
    random = {"extractor": "shufflenet_v2_x0_5", "weights": "none"}
    sizes = {f"{size} px": {**random, "preprocessing": {"image_size": size}} for size in (32, 64)}
    datasets = {"listed": {"images": "lists/some.csv", "image_root": "photos"}}
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | {"extractors": sizes, "datasets": datasets}))
    done = transferkit("benchmark", "--config", "mine.yaml", "--json")
    assert done.status == 0, done.err
    first, second = json.loads(done.out)["cells"]
    assert first["error"] is None and second["error"] is None and first["key"] != second["key"]
    for size, cell in ((32, first), (64, second)):
        (report,) = place.glob(f"out/cells/listed-{size}-px-*/probe.json")
        assert json.loads(report.read_text())["linear"]["top1"] == cell["top1"]
        preprocessing = json.loads(report.read_text())["embeddings"]["preprocessing"]
        assert preprocessing["crop"] == [size, size]
    sizes["bad"] = {**random, "preprocessing": {"image_sise": 32}}
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | {"extractors": {"bad": sizes["bad"]}, "datasets": datasets}))
    done = transferkit("benchmark", "--config", "mine.yaml")
    assert done.status == 2 and "image_sise" in done.err and "--model" not in done.err, done.err


@pytest.mark.slow
def test_several_labels_and_a_number(place: Path) -> None:
    files = sorted(path.relative_to(place / "photos") for path in (place / "photos").rglob("*.*"))
    for name, column in (("labels", "label"), ("light", "target")):
        texts = [
            f"{path},{f'{path.parent.name}|odd' if row % 2 else path.parent.name}" for row, path in enumerate(files)
        ]
        numbers = [f"{path},{row}" for row, path in enumerate(files)]
        lines = texts if name == "labels" else numbers
        Path(f"photos/{name}.csv").write_text("\n".join([f"path,{column}", *lines]))
    datasets = {"labels": {"images": "photos/labels.csv", "multilabel": True}, "light": "photos/light.csv"}
    random = {"extractor": "shufflenet_v2_x0_5", "weights": "none"}
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | {"extractors": {"random": random}, "datasets": datasets}))
    done = transferkit("benchmark", "--config", "mine.yaml", "--test_fraction", "0.4")
    assert done.status == 0, done.err
    assert "mAP" in done.out and "F1 macro" in done.out and "R²" in done.out and "MAE" in done.out
    again = transferkit("benchmark", "--config", "mine.yaml", "--test_fraction", "0.4", "--json")
    labels, light = json.loads(again.out)["cells"]
    assert 0 < labels["measures"]["map"] <= 1 and len(light["intervals"]["r2"]) == 2
    datasets["labels"] = {"images": "photos/labels.csv"}
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | {"extractors": {"random": random}, "datasets": datasets}))
    done = transferkit("benchmark", "--config", "mine.yaml", "--test_fraction", "0.4")
    assert done.status == 0 and "1 of 2 cells could not be measured" in done.err
    assert "add `multilabel=True`" in Path("out/benchmark.md").read_text()


@pytest.mark.slow
def test_seeds_and_two_random_networks(place: Path) -> None:
    """Each seed of random weights is a network of its own; several seeds of the splits are one row."""
    random = {"extractor": "shufflenet_v2_x0_5", "weights": "none"}
    extractors = {"first": random, "second": {**random, "seed": 1}}
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | {"extractors": extractors}))
    done = transferkit("benchmark", "--config", "mine.yaml", "--seeds", "0,1")
    assert done.status == 0, done.err
    assert "linear over seeds" in done.out and "(2)" in done.out
    again = transferkit("benchmark", "--config", "mine.yaml", "--seeds", "0,1", "--json")
    first, second = json.loads(again.out)["cells"]
    assert first["seeds"] == second["seeds"] == [0, 1] and first["weights_sha256"] != second["weights_sha256"]
    report = (place / "out/report.html").read_text(encoding="utf-8")
    assert "mean over seeds" in report and "the draw of the test images alone" in report
    assert len(list(place.glob("out/cells/*/cell.json"))) == 4
