"""Every command on a GPU, one after another in one folder, and the numbers of those that print any as on a CPU."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.words import save_dual
from tests.gpu.networks import difference
from tests.running import Done, transferkit, write_photos
from tests.tiny import VIT, options
from transferkit.cli.dispatch import VERBS
from transferkit.data.embeddings import Embeddings

pytestmark = pytest.mark.gpu

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
NET = "shufflenet_v2_x0_5"
RANDOM = ["--extractor", NET, "--weights", "none"]
BOXES = "path,x1,y1,x2,y2\ntrain/apples/0.jpg,0,0,20,20\nval/limes/0.jpg,5,5,30,30\n"
GRID = ["--extractors", json.dumps({name: {"extractor": name, "weights": "none"} for name in (NET, "squeezenet1_1")})]
GRID += ["--datasets", '{"photos": "photos"}', "--fast"]
FIT = ["--data.root", "photos", "--name", "run", "--data.num_workers", "0", "--trainer.accelerator", "ACCELERATOR"]
ON = ["--accelerator", "ACCELERATOR"]
DISTILL = ["--image_size", "64", "--epochs", "1", "--views", "2", "--batch_size", "4", "--num_workers", "0"]
# In this order: a command may need what those before it left.
COMMANDS = {
    "fit": [*options("model", {**VIT, "regime": "full"}), *FIT, "--trainer.max_epochs", "2"],
    "validate": FIT,
    "test": FIT,
    "predict": FIT,
    "explain": ["photos/val", "--name", "run", "-k", "2", *ON, "--json"],
    "embed": ["photos", *RANDOM, "--out", "e.parquet", "--trainer.accelerator", "ACCELERATOR"],
    "evaluate": ["e.parquet", "--out", "evaluated"],
    "compare": ["e.parquet", "e.parquet", "--json"],
    "similarity": ["photos/val/limes/0.jpg", "photos/val/apples/0.jpg", *RANDOM, *ON, "--json"],
    "probe": ["photos", *RANDOM, "--fast", *ON, "--json"],
    "rank": ["photos", "--extractors", f"{NET},squeezenet1_1", "--weights", "none", "--fast", *ON, "--json"],
    "benchmark": [*GRID, *ON, "--json"],
    "export": ["best", "--name", "run", "--out", "exported", "--onnx"],
    "distill": ["photos", "--teacher", "exported", "--student", NET, "--weights", "none", *DISTILL, *ON, "--json"],
    "index": ["photos", "--extractor", "exported", *ON],
    "search": ["index", "photos/val/limes/0.jpg", *ON, "--json"],
    "regions": ["photos", "--boxes", "boxes.csv", *RANDOM, *ON],
    "duplicates": ["photos", *RANDOM, "--threshold", "1", *ON, "--json"],
    "scan": ["photos", "--out", "scan.csv", "--json"],
    "zeroshot": ["photos", "--extractor", "dual", *ON, "--json"],
    "models": ["google/*", "--json"],
    "audit": ["photos", *RANDOM, "--out", "audited", *ON],
    "report": ["probe"],
    "cache": [],
    "doctor": ["--offline", "--json"],
}
ELSEWHERE = {"completion", "quickstart"}  # which run no network, or `fit` on built-in images


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos, boxes and a model of images and texts."""
    folder = tmp_path_factory.mktemp("verbs")
    write_photos(folder / "photos", COLOURS, {"train": 6, "val": 4})
    (folder / "boxes.csv").write_text(BOXES)
    save_dual("clip", folder / "dual")
    with chdir(folder):
        yield folder


def run(verb: str, accelerator: str, cache: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> Done:
    """Run a command with the cache of one device."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(Path(cache).absolute()))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    done = transferkit(verb, *(part.replace("ACCELERATOR", accelerator) for part in COMMANDS[verb]), *more)
    assert done.status == 0 or (verb in ("scan", "duplicates") and done.status == 2 and "error" not in done.err), done
    assert "Traceback" not in done.err
    return done


def test_every_verb_is_here() -> None:
    assert set(COMMANDS) | ELSEWHERE == set(VERBS)


@pytest.mark.parametrize("verb", list(COMMANDS))
def test_a_command(verb: str, work: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(verb, accelerator, "cache", monkeypatch)
    if "--json" in COMMANDS[verb]:
        assert json.loads(done.out)


def test_tables_say_where_they_were_computed(work: Path, device: torch.device) -> None:
    for file in ("e.parquet", "regions.parquet", "runs/run/0/embeddings.parquet"):
        assert Embeddings.load(work / file).metadata["device"] == device.type, file


def test_doctor_names_the_device(cuda: torch.device) -> None:
    facts = json.loads(transferkit("doctor", "--offline", "--json").out)
    assert facts["devices"]["accelerators"][0]["name"] == torch.cuda.get_device_name(0)


@pytest.mark.parametrize("verb", ["embed", "regions"])
def test_a_table_as_on_a_cpu(verb: str, work: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = COMMANDS["embed"][COMMANDS["embed"].index("--out") + 1] if verb == "embed" else "regions.parquet"
    ours = Embeddings.load(work / place)
    run(verb, "cpu", "cache of the CPU", monkeypatch, "--out", f"{verb} on the CPU.parquet")
    theirs = Embeddings.load(work / f"{verb} on the CPU.parquet")
    assert ours.paths == theirs.paths and difference(ours.embedding, theirs.embedding) <= 1e-4
    done = transferkit("compare", place, f"{verb} on the CPU.parquet")
    assert done.status == 0, "tables of two devices can be compared: " + done.err


@pytest.mark.parametrize("verb", ["similarity", "probe", "zeroshot", "explain", "search"])
def test_results_as_on_a_cpu(verb: str, work: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = json.loads(run(verb, accelerator, "cache", monkeypatch).out)
    theirs = json.loads(run(verb, "cpu", "cache of the CPU", monkeypatch).out)
    found, expected = (list(numbers(NAMED[verb](content))) for content in (ours, theirs))
    assert expected and found == pytest.approx(expected, abs=2e-4)


NAMED: dict[str, Any] = {
    "similarity": lambda content: content["cosine"],
    "probe": lambda content: [content["linear"]["top1"], content["knn"]["top1"], content["nearest_class_mean"]["top1"]],
    "zeroshot": lambda content: [row["probability"] for row in content["predictions"]],
    "explain": lambda content: [near["cosine"] for image in content["images"] for near in image["nearest"]],
    "search": lambda content: [hit["cosine"] for hit in content["results"]],
}


def numbers(content: Any) -> Iterator[float]:
    """All numbers within lists and dicts."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            yield from numbers(each)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield float(content)
